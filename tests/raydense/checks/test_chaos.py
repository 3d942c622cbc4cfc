"""Runs that are disturbed on purpose, every way there is: the bytes of the undisturbed one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]  # beside much other work; a quarter of that alone

SHORT = {"stage": {"count": 3, "groups": 12, "steps": 6}}


def chaos(small_values: dict[str, Any], tmp_path: Path, *options: str) -> list[dict[str, Any]]:
    """The outcomes of the runs, all of which ended with the undisturbed bytes and a balanced ledger."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({**small_values, **SHORT}))
    command = [sys.executable, "-m", "raydense.cli", "chaos", config, "--pause", "1", "--seed", "3", *options]
    command += ["--out", tmp_path / "chaos", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=1100, env={**os.environ})
    assert ended.returncode == 0, ended.stderr[-3000:]
    outcomes: list[dict[str, Any]] = json.loads(ended.stdout)
    assert all(outcome["same_bytes"] and outcome["balanced"] for outcome in outcomes)
    return outcomes


def total(outcomes: list[dict[str, Any]], what: str) -> Counter[str]:
    return sum((Counter(outcome[what]) for outcome in outcomes), Counter())


def test_no_fault_changes_a_byte_and_every_kind_of_fault_took_effect(
    small_values: dict[str, Any], tmp_path: Path
) -> None:
    outcomes = chaos(small_values, tmp_path, "--faults", "5", "--a-run", "5")
    assert total(outcomes, "faults").total() == len(total(outcomes, "faults")) == 5  # every kind
    seen = total(outcomes, "ledger")
    for effect in ("deaths", "hangs", "retried", "restarted"):
        assert seen[effect] > 0, (effect, seen)


@pytest.mark.slow
def test_nor_do_more_of_them_in_both_schedules(small_values: dict[str, Any], tmp_path: Path) -> None:
    """What the test above shows, at another size; groups that a node took with it are sampled again."""
    outcomes = chaos(small_values, tmp_path, "--faults", "10", "--a-run", "5")
    assert {outcome["schedule"] for outcome in outcomes} == {"synchronous", "overlapped"}
    assert set(total(outcomes, "faults").values()) == {2}
    seen = total(outcomes, "ledger")
    for effect in ("deaths", "hangs", "lost", "retried", "resampled", "restarted"):
        assert seen[effect] > 0, (effect, seen)
