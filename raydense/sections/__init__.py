"""What may be set: the sections of a configuration as frozen, validated types with their defaults.

Enters: a setting, with its type, its bounds and a comment that says what it is.
Uses: core; and pydantic.
"""
