"""How threads wait for each other on a machine that does other things too. Imports nothing that starts threads."""

from __future__ import annotations

import os

SPINS = "2000"  # of an OpenMP thread at a barrier before it sleeps: some 10 microseconds instead of milliseconds


def share_the_machine() -> None:
    """For this process and those that it starts; for its own threads, before PyTorch is imported. What is set stays.

    A thread that spins for a partner whose core another process has, keeps that partner from running. And Ray starts
    workers at niceness 15, where they hardly run beside any other work.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    os.environ.setdefault("RAY_worker_niceness", "0")
