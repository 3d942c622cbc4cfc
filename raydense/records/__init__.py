"""The run directory: every file that a run writes, and how it is read again.

Enters: a file format, a place to keep runs, a sink for metrics, the run's display.
Uses: diffusion, config, sections, files, core; config for the configuration that lies in a run.
"""
