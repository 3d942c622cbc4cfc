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


def chaos(python: Path, small_values: dict[str, Any], tmp_path: Path, *options: str) -> list[dict[str, Any]]:
    """The outcomes of the runs, all of which ended with the undisturbed bytes and a balanced ledger."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({**small_values, **SHORT}))
    command = [python, "-m", "raydense.cli", "chaos", config, "--pause", "1", *options]
    command += ["--out", tmp_path / "chaos", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=1100, env={**os.environ})
    assert ended.returncode == 0, ended.stderr[-3000:]
    outcomes: list[dict[str, Any]] = json.loads(ended.stdout)
    assert all(outcome["same_bytes"] and outcome["balanced"] for outcome in outcomes)
    return outcomes


def total(outcomes: list[dict[str, Any]], what: str) -> Counter[str]:
    return sum((Counter(outcome[what]) for outcome in outcomes), Counter())


@pytest.mark.slow
def test_neither_a_lost_node_nor_a_killed_driver_changes_a_byte(
    warm_python: Path, small_values: dict[str, Any], tmp_path: Path
) -> None:
    """The other kinds: a killed sampler and learner in `test_faults.py`, a frozen sampler in `test_ray_fleet.py`.

    plain: `test_a_killed_sampler_and_a_killed_learner_change_no_byte`; and of a killed driver, `test_resume.py`.
    """
    outcomes = chaos(warm_python, small_values, tmp_path, "--faults", "2", "--a-run", "2", "--seed", "4")
    assert total(outcomes, "faults") == {"remove node": 1, "kill driver": 1}
    seen = total(outcomes, "ledger")
    for effect in ("deaths", "retried", "restarted"):
        assert seen[effect] > 0, (effect, seen)


@pytest.mark.slow
def test_nor_does_any_kind_of_fault_in_both_schedules(small_values: dict[str, Any], tmp_path: Path) -> None:
    """Every kind twice; groups that a node took with it are sampled again.

    plain: `test_a_killed_sampler_and_a_killed_learner_change_no_byte`.

    In processes that start as a user's do: how long that takes decides what a fault hits.
    """
    outcomes = chaos(Path(sys.executable), small_values, tmp_path, "--faults", "10", "--a-run", "5", "--seed", "3")
    assert {outcome["schedule"] for outcome in outcomes} == {"synchronous", "overlapped"}
    assert set(total(outcomes, "faults").values()) == {2}
    seen = total(outcomes, "ledger")
    for effect in ("deaths", "hangs", "lost", "retried", "resampled", "restarted"):
        assert seen[effect] > 0, (effect, seen)
