"""`raydense report`: a run as one HTML page.

Enters: a figure, a table or a picture of what a run directory says. It computes nothing that a run needs.
Uses: records, core, config, and the learner's draws, which it repeats, for a run's metrics as well.
"""
