"""Makes the Python of hosts' environments the one of `warm_python.py`, until standard input ends.

    python warm.py PID …                             # the first processes of the hosts

Four hosts on two cores would else spend most of a run on imports. One process imports, and a copy of it moves to each
host. What travels with a job is imported there: a warm Python has none of our packages.
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from pathlib import Path

import warm_python

SPACES = ("net", "mnt", "uts", "ipc", "pid")
BIN = Path(sys.prefix, "bin")
ITSELF = str(BIN / "python-itself")  # as Python is still called on the hosts


def move_to(host: int) -> None:
    """Returns in a process on the host of this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    spaces = [os.open(f"/proc/{host}/ns/{kind}", os.O_RDONLY) for kind in SPACES]
    for space in spaces:
        if libc.setns(space, 0):
            raise OSError(ctypes.get_errno(), f"setns to process {host}")
        os.close(space)
    if os.fork():  # only what is forked now is in the namespace of processes
        os._exit(0)


def stand_in() -> None:
    """Serves this host."""
    directory = warm_python.make_home(Path(tempfile.mkdtemp(prefix="warm-", dir="/tmp")), ITSELF)
    pythons = list(BIN.glob("python*"))
    os.symlink(os.path.realpath(sys.executable), ITSELF)
    for python in pythons:
        link = python.with_name(f"new-{python.name}")
        link.symlink_to(directory / "python")
        os.replace(link, python)
    warm_python.serve(directory, ITSELF)


if __name__ == "__main__":
    warm_python.warm_up(own=False)
    for host in map(int, sys.argv[1:]):
        if not os.fork():
            move_to(host)
            stand_in()
        os.wait()
    sys.stdin.read()
