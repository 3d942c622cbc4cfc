"""The vocabulary of all rooms: types, protocols, seeding, statistics, ledger, replay buffer, messages.

Enters: what two rooms or more must agree on, and pure functions that know no room.
Uses: nothing of this project.
"""
