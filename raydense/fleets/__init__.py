"""Where samplers and learner live: this process, or actors on Ray; and how a stage's groups come in.

Enters: another place to run, a way to reach a cluster, what keeps groups on disk.
Uses: planning, wiring, actors, learner, records, pipelines, config, core; only `ray_*.py` knows Ray.
"""
