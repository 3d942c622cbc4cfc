"""Judges of pictures, a file each: (images, prompts) in, a number a picture out.

Enters: a scorer, with its section in `raydense.sections.rewards` and its line in `raydense.wiring`.
Uses: pipelines, config's error, files, core. Takes plain arguments, never a configuration.
"""
