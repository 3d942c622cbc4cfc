"""Algorithm 1, and one whole run around it: judging, metrics, checkpoints, resume, learning from stored groups.

Enters: what happens in a run from its first judging to its summary, in the order in which it happens.
Uses: fleets, planning, wiring and all below. It is the same loop alone and on Ray.
"""
