"""Whole runs through the command line: one process and several sizes of fleet, to the same bytes.

Two samplers, as by default, have these bytes too: `test_faults.py`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.numpy import load_file
from typer.testing import CliRunner

from raydense.cli import app
from raydense.config import load_config
from raydense.core.types import tensor_checksum

RUNS = {
    "local": ["--local"],
    "ray, 1 sampler": ["--set", "samplers.count=1"],
    "ray, 3 samplers": ["--set", "samplers={count: 3, num_cpus: 0.3}"],
}
LORA = "lora/pytorch_lora_weights.safetensors"
USERS_MODULE = """
def bright(images, prompts):
    images //= 2
    return images.mean(axis=(1, 2, 3))

def leaver(images, prompts):
    raise SystemExit(3)
"""
MONITORS = [{"kind": "callable", "name": name, "target": f"my_scores:{name}"} for name in ("bright", "leaver")]
pytestmark = pytest.mark.ray


def start(python: Path, config: Path, out: Path, *arguments: str) -> subprocess.Popen[str]:
    """`raydense train` as it is installed, with the user's module in the current directory."""
    (out.parent / "my_scores.py").write_text(USERS_MODULE)
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}  # a cluster of its own
    command = [python, Path(sys.executable).with_name("raydense"), "train", config, "--out", out, *arguments]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=out.parent,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def config(small_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("config") / "small.yaml"
    evaluate = {**small_values["evaluate"], "every_steps": 2}
    file.write_text(yaml.safe_dump({**small_values, "evaluate": evaluate}))
    return file


@pytest.fixture(scope="module")
def with_monitors(small_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Judged by the user's module too, which only a command started beside it finds."""
    file = tmp_path_factory.mktemp("config") / "monitors.yaml"
    reward = {**small_values["reward"], "monitors": MONITORS}
    file.write_text(yaml.safe_dump({**small_values, "reward": reward}))
    return file


@pytest.fixture(scope="module")
def run_named(config: Path, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The finished run directory of a name; those on Ray use the session's cluster."""
    root = tmp_path_factory.mktemp("runs")

    @cache
    def finished(name: str) -> Path:
        out = root / name.replace(",", "").replace(" ", "-")
        result = CliRunner().invoke(app, ["train", str(config), "--out", str(out), *RUNS[name]])
        said = result.stdout
        assert result.exit_code == 0, f"{name}:\n{result.output}"
        assert "small, seed 3: mean score, before and after" in said
        assert LORA in said
        return out

    return finished


def read_rows(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


@pytest.mark.parametrize("other", ["ray, 3 samplers", pytest.param("ray, 1 sampler", marks=pytest.mark.slow)])
def test_where_it_runs_changes_no_byte(run_named: Callable[[str], Path], other: str) -> None:
    ours, theirs = run_named("local"), run_named(other)
    names = [LORA, "metrics.jsonl", "scores.json", "images/base.png", "images/before-after.png"]
    checkpoints = sorted(p.relative_to(ours) for p in ours.glob("checkpoints/*/lora.safetensors"))
    assert {p.parent.name for p in checkpoints} >= {"stage-0001", "stage-0002"}
    for name in (*names, *checkpoints):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name


@pytest.mark.parametrize("name", ["local", "ray, 3 samplers"])
def test_the_run_directory_holds_everything(run_named: Callable[[str], Path], config: Path, name: str) -> None:
    run = run_named(name)
    found = ["steps.dynamics=ddim", "steps.exclude_last=0", "policy.lora_targets=[to_q, to_k, to_v, to_out.0]"]
    assert load_config(run / "config.yaml") == load_config(config, overrides=[*RUNS[name][1:2], *found])
    last = load_file(run / "checkpoints/stage-0002/lora.safetensors")
    stages = read_rows(run, "stage")
    assert [row["policy/version"] for row in stages] == [0, 3]
    assert stages[1]["weights_checksum"] == tensor_checksum(load_file(run / "checkpoints/stage-0001/lora.safetensors"))
    final = load_file(run / LORA)  # other names, the same tensors
    assert len(final) == len(last) == 64
    assert sorted(a.tobytes() for a in final.values()) == sorted(a.tobytes() for a in last.values())
    with Image.open(run / "images/base.png") as one, Image.open(run / "images/before-after.png") as both:
        assert both.width > 1.9 * one.width
        assert both.height == one.height


def test_the_metrics_account_for_every_stage_and_step(run_named: Callable[[str], Path]) -> None:
    stages, steps = read_rows(run_named("local"), "stage"), read_rows(run_named("local"), "step")
    assert [row["replay/groups"] for row in stages] == [5, 5]
    # 3 trajectories of 5 states of 256 float16, 4 log-probs and a reward each; the prompt's embedding of 12 × 16
    assert [row["replay/bytes"] for row in stages] == [5 * (3 * (5 * 256 * 2 + 4 * 4 + 4) + 12 * 16 * 4)] * 2
    assert [(row["stage"], row["step"]) for row in steps] == [(0, 1), (0, 2), (0, 3), (1, 4), (1, 5), (1, 6)]
    assert steps[0]["loss"] == pytest.approx(np.log(2), rel=1e-6)
    assert steps[0]["log_ratio/abs_max"] == 0.0
    assert all(row["grad_norm"] >= 0 for row in steps)
    assert all(row["reward/ties"] == 0 for row in steps)


@pytest.mark.parametrize("name", ["local", "ray, 3 samplers"])
def test_the_summary_says_what_was_gained_and_with_what(run_named: Callable[[str], Path], name: str) -> None:
    summary = json.loads((run_named(name) / "summary.json").read_text("utf-8"))
    assert (summary["name"], summary["seed"], summary["scorer"]) == ("small", 3, "clip")
    assert summary["runner"] == ("local" if name == "local" else "ray")
    assert summary["wall_s"] > sum(summary["phases_s"].values()) * 0.5 > 0
    for package in ("raydense", "ray", "torch", "diffusers"):
        assert summary["versions"][package] == version(package)
    for prompts in ("train", "unseen"):
        row = summary["reward"][prompts]
        assert {row[what]["n"] for what in ("before", "after", "gain")} == {2 * 2}
        assert row["gain"]["mean"] == pytest.approx(row["after"]["mean"] - row["before"]["mean"], abs=1e-6)
        # the same seeds before and after: the paired difference is far less noisy than either mean
        assert 0 < row["gain"]["se"] < 0.5 * row["before"]["se"]


def test_the_summary_follows_from_the_single_scores(run_named: Callable[[str], Path]) -> None:
    summary = json.loads((run_named("local") / "summary.json").read_text("utf-8"))
    scores = json.loads((run_named("local") / "scores.json").read_text("utf-8"))
    for prompts, row in summary["reward"].items():
        before, after = (
            np.array([by_scorer["clip"][when] for by_scorer in scores[prompts].values()])
            for when in ("before", "after")
        )
        gain = after - before
        assert before.shape == (2, 2)
        assert row["gain"]["mean"] == pytest.approx(gain.mean(), rel=1e-6)
        assert row["gain"]["se"] == pytest.approx(gain.std(ddof=1) / 2, rel=1e-6)
        assert row["gain"]["se_by_prompt"] == pytest.approx(gain.mean(axis=1).std(ddof=1) / np.sqrt(2), rel=1e-6)


@pytest.mark.parametrize("runner", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_ctrl_c_leaves_a_directory_that_can_be_used(
    warm_python: Path, with_monitors: Path, tmp_path: Path, runner: str
) -> None:
    out, where = tmp_path / "run", {"local": ["--local"], "ray": []}
    process = start(
        warm_python, with_monitors, out, "--set", "stage.count=1000", "--set", "samplers.count=1", *where[runner]
    )
    try:
        deadline = time.monotonic() + 400  # on a busy machine; 30 s on a quiet one
        while not (out / "checkpoints/stage-0001/manifest.json").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the whole foreground group
        stdout, stderr = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert f"raydense train --resume {out}" in stderr
    assert "Traceback" not in stderr
    assert len(load_file(out / LORA)) == 64
    assert not (out / "summary.json").exists()
    assert [row["step"] for row in read_rows(out, "step")][:3] == [1, 2, 3]
    assert stdout.count("the monitor leaver failed, and the run goes on without these scores: scorer leav") == 1
    stages = read_rows(out, "stage")
    assert all(0 < row["reward/monitor/bright"] < 128 for row in stages)
    assert not any("reward/monitor/leaver" in row for row in stages)
