"""Is this machine fit for a run, and does a run survive: `raydense doctor` and `raydense chaos`.

Enters: one more thing to check before the first GPU-hour, one more way to disturb a run on purpose.
Uses: fleets, planning, wiring and all below.
"""
