"""Processes of a run on Ray that die for real (SIGKILL): the result has the bytes of an undisturbed run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner
from warm_python import processes_below

from raydense.cli import app

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

LONG = {"stage": {"count": 2, "groups": 8, "steps": 6}}
Fault = tuple[Callable[[Path], bool], str]  # when, and the class of the actor that is killed


def train(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


def disturbed(run: Path, python: Path, faults: list[Fault], *arguments: str | Path) -> Result:
    """A run on the session's cluster, beside which a thread kills one actor after the other."""
    ended = False

    def harass() -> int:
        deadline = time.monotonic() + 240
        for reached, actor in faults:
            while not reached(run):
                assert not ended, "the run ended before the moment to disturb it"
                assert time.monotonic() < deadline
                time.sleep(0.005)
            kill_actor(actor, python)
        return len(faults)

    with ThreadPoolExecutor(1) as beside:
        killed = beside.submit(harass)
        result = train(*arguments, "--out", run)
        ended = True
        assert killed.result() == len(faults)
    return result


def kill_actor(name: str, python: Path) -> None:
    """SIGKILLs one of the processes below this one that run an actor of this class."""
    for child in processes_below(python):
        if any(name in part for part in child.cmdline()):
            child.kill()
            return
    raise AssertionError(f"no process of actor {name}")


def rows(path: Path, **wanted: Any) -> int:
    """Rows of a JSON-lines file that have these values."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return sum(all(row.get(key) == value for key, value in wanted.items()) for row in found)


def assert_same_bytes(run: Path, calm: Path) -> None:
    for name in ("lora/pytorch_lora_weights.safetensors", "metrics.jsonl"):
        assert (run / name).read_bytes() == (calm / name).read_bytes()


def test_a_killed_sampler_and_a_killed_learner_change_no_byte(
    small_values: dict[str, Any], warm_python: Path, tmp_path: Path
) -> None:
    """Beside two samplers, against a run without Ray."""
    config, calm, run = tmp_path / "long.yaml", tmp_path / "calm", tmp_path / "run"
    config.write_text(yaml.safe_dump({**small_values, **LONG}))
    assert train(config, "--local", "--out", calm).exit_code == 0
    faults: list[Fault] = [
        (lambda run: rows(run / "telemetry.jsonl", kind="unit", stage=0) >= 1, "ray::Sampler"),
        (lambda run: rows(run / "metrics.jsonl", kind="step", stage=1) >= 2, "ray::Learner"),
    ]
    result = disturbed(run, warm_python, faults, config)
    assert result.exit_code == 0, result.output
    assert rows(run / "telemetry.jsonl", kind="ledger", **{"fleet/deaths": 1}) >= 1
    assert rows(run / "telemetry.jsonl", kind="ledger", **{"fleet/deaths": 1, "fleet/lost": 0}) == 0
    assert_same_bytes(run, calm)


@pytest.mark.slow
def test_a_killed_worker_of_the_learner_changes_no_byte(
    small_values: dict[str, Any], warm_python: Path, tmp_path: Path
) -> None:
    """plain: `test_a_killed_sampler_and_a_killed_learner_change_no_byte`, of a whole learner; and
    `test_a_dead_worker_is_the_learners_death_and_new_ones_go_on_from_a_checkpoint`.
    """
    workers = {"learner": {"num_workers": 2, "num_cpus": 0.5}, "stage": {"count": 2, "groups": 6, "steps": 12}}
    config, calm, run = tmp_path / "workers.yaml", tmp_path / "calm", tmp_path / "run"
    config.write_text(yaml.safe_dump({**small_values, **workers, "samplers": {"count": 1, "num_cpus": 0.5}}))
    assert train(config, "--out", calm).exit_code == 0
    faults: list[Fault] = [(lambda run: rows(run / "metrics.jsonl", kind="step", stage=1) >= 2, "ray::Learner")]
    result = disturbed(run, warm_python, faults, config)
    assert result.exit_code == 0, result.output
    assert "the learner died" in result.output
    assert_same_bytes(run, calm)
