"""The network side: transition kernel and schedules, policy, LoRA and its files, compilation, memory savers.

Enters: a chain's constants; a format of LoRA files.
Uses: core, families, pipelines, and from config the error alone. Takes plain arguments, never a configuration.
"""
