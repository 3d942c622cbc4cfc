"""The network side: transition kernel and schedules, policy, LoRA and its files, compilation, memory savers.

Enters: a chain's constants; a format of LoRA files.
Uses: families, pipelines, config's error, sections, files, core. Takes plain arguments, never a configuration.
"""
