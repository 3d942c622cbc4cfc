"""The wiring: here alone, and in config, a configuration becomes objects.

Enters: what a further setting, scorer or kind of model is built of.
Uses: actors, learner, rewards, diffusion, families, pipelines, config, sections, core.
"""
