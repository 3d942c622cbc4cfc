"""What Ray adds to a run's wall time: the benchmark runs, both ways learn the same bytes, and the share is small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "ray_share.py"


@pytest.mark.slow
@pytest.mark.ray
def test_the_same_bytes_with_and_without_ray_in_nearly_the_same_time(tmp_path: Path) -> None:
    """plain: `test_where_it_runs_changes_no_byte`; the times take a quiet machine."""
    command = [sys.executable, SCRIPT, "--stages", "3", "--json", tmp_path / "share.json"]
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=500)
    assert ended.returncode == 0, ended.stderr[-2000:]  # it asserts that both learned the same
    found = json.loads((tmp_path / "share.json").read_text())
    print(found)
    assert found["share"]["median"] <= 0.1  # 0.03 on a quiet machine
