"""What a diffusers pipeline is made of: its files, read and checked before any weight, and its networks, loaded whole.

Enters: a further kind of part, or of damage that a file can have.
Uses: core, files, and from config the error alone. Takes plain arguments, never a configuration.
"""
