"""Judging finished LoRAs and telling runs apart: evaluate, sample, compare, sweep, export.

Enters: what reads finished runs or LoRA files and answers a question about them.
Uses: training (its judging), fleets, the wiring, planning and all below.
"""
