"""The sampler's role: denoise with the weights that a unit names, score, keep K of R; and the pool of samplers.

Enters: what happens between a work unit and its trajectory groups, and who works on what.
Uses: diffusion, rewards, core. Takes plain arguments, never a configuration; only `ray_*.py` knows Ray.
"""
