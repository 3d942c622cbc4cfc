"""The learner's role: draws from the replay buffer, the loss as pure functions, gradient steps on the LoRA.

Enters: objectives (a function in `losses.py`), what a step draws, fetches and remembers, several workers as one.
Uses: diffusion, families, pipelines, core. Takes plain arguments, never a configuration; only `ray_*.py` knows Ray.
"""
