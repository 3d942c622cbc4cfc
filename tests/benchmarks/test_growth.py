"""How a step's cost grows: the benchmark runs on two points of each axis, and its figures are of the right kind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent / "growth.py"


def run(tmp_path: Path, *arguments: str) -> Any:
    command = [
        sys.executable,
        SCRIPT,
        *arguments,
        "--json",
        tmp_path / "growth.json",
        "--plot",
        tmp_path / "growth.svg",
    ]
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert (tmp_path / "growth.svg").read_text("utf-8").startswith("<?xml")
    return json.loads((tmp_path / "growth.json").read_text())


@pytest.mark.slow
def test_time_has_a_point_and_an_exponent_on_every_axis(tmp_path: Path) -> None:
    """no plain twin: takes a quiet machine, as it compares times."""
    found = run(tmp_path, "--what", "time", "--points", "2", "--rounds", "2")
    assert list(found) == ["K", "draws", "batch", "latent", "groups"]
    for axis in found.values():
        assert [row["low_s"] <= row["time_s"] <= row["high_s"] for row in axis["points"]] == [True, True]
    assert [row["size"] for row in found["latent"]["points"]] == [4 * 8**2, 4 * 12**2]
    assert found["latent"]["exponents"]["time"] > 0.3
    assert abs(found["groups"]["exponents"]["time"]) < 0.5
    small, large = found["groups"]["points"]
    assert (small["stage_bytes"], large["stage_bytes"]) == (40 * 5 * 11 * 256 * 2, 80 * 5 * 11 * 256 * 2)


@pytest.mark.slow
def test_memory_grows_with_the_batch(tmp_path: Path) -> None:
    """no plain twin: takes the memory of a whole process."""
    found = run(tmp_path, "--what", "memory", "--axes", "batch", "--points", "2")["batch"]
    assert 0.6 < found["exponents"]["memory"] < 1.4
    assert found["points"][0]["memory_bytes"] > 10 * 2**20
