"""The command line, a module a command: options, help and what is printed.

Enters: a new command, which parses its options and calls one function of a room below.
Uses: every room, imported inside the function, so that `--help` stays fast.
"""
