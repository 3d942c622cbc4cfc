"""Prompt sets: files, the paper's own prompts, HPSv2's sets; which prompt a group of a stage has.

Enters: a file format (a reader in `sources.py`), a built-in set.
Uses: files, core.
"""
