"""What a diffusers pipeline is made of: its files, read and checked before any weight, and its networks, loaded whole.

Enters: a further kind of part, or of damage that a file can have.
Uses: config's error, files, core. Takes plain arguments, never a configuration.
"""
