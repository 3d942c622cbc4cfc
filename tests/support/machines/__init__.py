"""Several machines on one: hosts in namespaces, joined by links that can be slow, lossy or cut.

Linux only, as root. Not there: kernels and clocks of their own; all share this machine's cores and memory.
"""
