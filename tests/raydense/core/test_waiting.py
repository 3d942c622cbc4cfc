"""What is set before PyTorch is imported, and what is left as the user has it."""

from __future__ import annotations

import os

import pytest

from raydense.core.waiting import SPINS, share_the_machine

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "RAY_worker_niceness")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, {"GOMP_SPINCOUNT": SPINS, "RAY_worker_niceness": "0"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7", "RAY_worker_niceness": "0"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE", "RAY_worker_niceness": "0"}),
        ({"RAY_worker_niceness": "15"}, {"GOMP_SPINCOUNT": SPINS, "RAY_worker_niceness": "15"}),
    ],
)
def test_only_what_is_not_set_is_set(
    given: dict[str, str], found: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    share_the_machine()
    assert {name: os.environ[name] for name in NAMES if name in os.environ} == found
    for name in found:
        monkeypatch.delenv(name)
