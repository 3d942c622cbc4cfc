"""The real stage loop, fleet and learner actor, compute replaced by sleep: what the driver costs and overlap gains."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "scaling.py"


@pytest.mark.slow
@pytest.mark.ray
def test_overlapping_gains_what_it_should_and_sixteen_samplers_are_kept_busy(tmp_path: Path) -> None:
    """no plain twin: takes a quiet machine, as it compares times."""
    command = [sys.executable, SCRIPT, "--samplers", "16", "--units-each", "10", "--json", tmp_path / "figures.json"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert ended.returncode == 0, ended.stderr[-2000:]
    figures = json.loads((tmp_path / "figures.json").read_text())
    print(figures)
    assert figures["overlapped"] >= 1.6
    assert figures["scaling"][0]["efficiency"] >= 0.9  # 0.95 on a quiet machine
