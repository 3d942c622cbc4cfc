"""The command line, a module a command: options, help and what is printed.

Enters: a new command, which parses its options and calls one function of a room below.
Uses: evaluation and all below; imported inside the function, so that `--help` stays fast.
"""
