"""What a device sustains: sampler, learner and scorer, measured on models of known size with random weights.

Enters: a model to measure, a clock, a rate. No run depends on it.
Uses: planning, wiring and all below; never Ray.
"""
