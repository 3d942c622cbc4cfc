"""Processes of a run on Ray that die for real (SIGKILL): the result has the bytes of an undisturbed, Ray-free run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

pytestmark = pytest.mark.ray

LONG = {"stage": {"count": 3, "groups": 12, "steps": 8}}


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "raydense.cli", "train", *map(str, arguments)]


def rows(path: Path, **wanted: Any) -> int:
    """Rows of a JSON-lines file that have these values."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return sum(all(row.get(key) == value for key, value in wanted.items()) for row in found)


def wait_until(process: subprocess.Popen[bytes], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, "the run ended before the moment to disturb it"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def kill_actor(driver: int, name: str) -> None:
    """SIGKILLs one of the driver's own actor processes."""
    for child in psutil.Process(driver).children(recursive=True):
        if any(name in part for part in child.cmdline()):
            child.kill()
            return
    raise AssertionError(f"no process of actor {name} below {driver}")


def test_a_killed_sampler_and_a_killed_learner_change_no_byte(small_values: dict[str, Any], tmp_path: Path) -> None:
    config = tmp_path / "long.yaml"
    config.write_text(yaml.safe_dump({**small_values, **LONG}))
    calm, run = tmp_path / "calm", tmp_path / "run"
    subprocess.run(command(config, "--local", "--out", calm), check=True, capture_output=True)

    driver = subprocess.Popen(command(config, "--out", run), stdout=subprocess.DEVNULL)
    try:
        wait_until(driver, lambda: rows(run / "telemetry.jsonl", kind="unit", stage=1) >= 1)
        kill_actor(driver.pid, "RaySampler")
        wait_until(driver, lambda: rows(run / "metrics.jsonl", kind="step", stage=2) >= 2)
        kill_actor(driver.pid, "_LearnerActor")
        assert driver.wait(240) == 0
    finally:
        driver.kill()

    assert rows(run / "telemetry.jsonl", kind="ledger", **{"fleet/deaths": 1}) >= 1
    assert rows(run / "telemetry.jsonl", kind="ledger", **{"fleet/deaths": 1, "fleet/lost": 0}) == 0
    for name in ("lora/pytorch_lora_weights.safetensors", "metrics.jsonl"):
        assert (run / name).read_bytes() == (calm / name).read_bytes()


def test_a_killed_worker_of_the_learner_changes_no_byte(small_values: dict[str, Any], tmp_path: Path) -> None:
    workers = {"learner": {"num_workers": 2, "num_cpus": 0.5}, "stage": {"count": 2, "groups": 6, "steps": 12}}
    config = tmp_path / "workers.yaml"
    config.write_text(yaml.safe_dump({**small_values, **workers, "samplers": {"count": 1, "num_cpus": 0.5}}))
    calm, run = tmp_path / "calm", tmp_path / "run"
    subprocess.run(command(config, "--out", calm), check=True, capture_output=True)

    driver = subprocess.Popen(command(config, "--out", run), stdout=subprocess.PIPE)
    try:
        wait_until(driver, lambda: rows(run / "metrics.jsonl", kind="step", stage=1) >= 2)
        kill_actor(driver.pid, "_LearnerActor")
        output, _ = driver.communicate(timeout=240)
    finally:
        driver.kill()
    assert driver.returncode == 0
    assert b"the learner died" in output
    for name in ("lora/pytorch_lora_weights.safetensors", "metrics.jsonl"):
        assert (run / name).read_bytes() == (calm / name).read_bytes()
