"""The sampler's role: denoise with the weights that a unit names, score, keep K of R; and the pool of samplers.

Enters: what happens between a work unit and its trajectory groups, and who works on what.
Uses: rewards, diffusion, families, pipelines, config's error, core. Takes plain arguments, never a configuration.
Only `ray_*.py` knows Ray.
"""
