"""The network side: transition kernel, policy, LoRA and its files, compilation, memory savers.

Enters: a model family or a kernel, a file each; a format of LoRA files.
Uses: core, and from config the error alone. Takes plain arguments, never a configuration.
"""
