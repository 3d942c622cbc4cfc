"""The embedded default: a small diffusion model, its preference scorer, an independent judge, and what made them.

Enters: what the embedded model needs, and nothing that another model would. Presets name it by its path.
Uses: prompts, diffusion; its weights are files beside the code.
"""
