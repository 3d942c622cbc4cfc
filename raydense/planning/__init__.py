"""What a run needs and whether it fits, found out before anything starts; and its work units.

Enters: a check of the input, an estimate of work, memory, hours or money, a rule of placement.
Uses: wiring, rewards and all below; loads no weights and never Ray.
"""
