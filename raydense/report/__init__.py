"""`raydense report`: a run as one HTML page.

Enters: a figure, a table or a picture of what a run directory says. It computes nothing that a run needs.
Uses: learner, records, config, sections, files, core. It repeats the learner's draws, for a run's metrics as well.
"""
