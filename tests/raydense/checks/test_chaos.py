"""Runs that are disturbed on purpose, every way there is, in both schedules: the bytes of the undisturbed one."""

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

pytestmark = pytest.mark.ray

SHORT = {"stage": {"count": 3, "groups": 12, "steps": 6}}


def test_no_fault_changes_a_byte_and_every_kind_of_fault_took_effect(
    small_values: dict[str, Any], tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({**small_values, **SHORT}))
    command = [sys.executable, "-m", "raydense.cli", "chaos", config, "--faults", "6", "--a-run", "3", "--pause", "1"]
    command += ["--seed", "3", "--out", tmp_path / "chaos", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=540, env={**os.environ})
    assert ended.returncode == 0, ended.stderr[-3000:]
    outcomes = json.loads(ended.stdout)

    assert {outcome["schedule"] for outcome in outcomes} == {"synchronous", "overlapped"}
    assert all(outcome["same_bytes"] and outcome["balanced"] for outcome in outcomes)
    injected = sum((Counter(outcome["faults"]) for outcome in outcomes), Counter())
    assert injected.total() == 6
    assert len(injected) == 5  # every kind
    seen = sum((Counter(outcome["ledger"]) for outcome in outcomes), Counter())
    for effect in ("deaths", "hangs", "lost", "retried", "resampled", "restarted"):
        assert seen[effect] > 0, (effect, seen)
