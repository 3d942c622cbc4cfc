"""Judging finished LoRAs and telling runs apart: evaluate, sample, compare, sweep, export.

Enters: what reads finished runs or LoRA files and answers a question about them.
Uses: training, fleets, planning, wiring and all below.
"""
