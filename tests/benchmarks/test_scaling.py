"""The real stage loop, fleet and learner actor, compute replaced by sleep: what the driver costs and overlap gains."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent / "scaling.py"


@pytest.fixture(autouse=True)
def beside_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)


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


def test_a_simulated_fleet_is_kept_busy_by_the_real_dispatcher() -> None:
    from simulated import direct

    class Silent:
        def __getattr__(self, name: str) -> Any:
            return lambda *_: None

    found = direct(samplers=20, unit_s=5.0, units_each=10, observer=Silent())
    assert found["units"] == 400
    assert 0.9 <= found["efficiency"] <= 1.05  # units and samplers differ by a tenth, and a stage ends with the last


def test_every_worker_of_a_learner_fetches_nearly_every_group_of_a_stage() -> None:
    from simulated import GROUP_BYTES, pulled

    found = pulled(workers=8, groups=100, steps=200, batch_groups=8)
    assert found["first_step_gb"] <= 8 * GROUP_BYTES / 1e9
    assert found["stage_gb"] == 100 * GROUP_BYTES / 1e9
