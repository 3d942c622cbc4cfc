"""The wiring: here alone a configuration becomes judges, policies, samplers and learners.

Enters: what a further setting, scorer or kind of model is built of.
Uses: actors, learner, rewards, diffusion, families, pipelines, config, sections, core.
"""
