"""Files of others and of ours: where they are, what is in them, whether they are sound, and how they are written whole.

Enters: what is true of files whatever they are for.
Uses: core.
"""
