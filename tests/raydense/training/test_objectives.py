"""Whole runs of every other objective: cut and continued to the same bytes, counted, reported, learned from disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import UNet2DConditionModel
from typer.testing import CliRunner
from warm_python import process_of

from raydense.cli import app
from raydense.records.metrics import read_rows
from raydense.records.run_dir import RunDirectory

LORA = "lora/pytorch_lora_weights.safetensors"
OBJECTIVES: dict[str, dict[str, Any]] = {
    "trajectory_preference": {},
    "policy_gradient": {"kl": 0.1, "tuple_size": 3},
    "diffusion_dpo": {"dpo_beta": 200.0},
}
OWN = {
    "trajectory_preference": {"log_ratio/abs_mean", "logit_std"},
    "policy_gradient": {"ratio/mean", "ratio/max", "advantage/abs_mean", "kl", "log_ratio/clip_fraction"},
    "diffusion_dpo": {"implicit_accuracy", "error/model", "error/initial", "logit_std"},
}
SHARED = {"loss", "pair_accuracy", "grad_norm", "reward/gap", "reward/ties", "skipped"}
SIZES = {
    "stage": {"count": 2, "groups": 4, "steps": 3},
    "checkpoint": {"every_steps": 2},
    "replay": {"segments": True, "keep_segments": True},
    "evaluate": {"prompts": 1, "images_per_prompt": 2, "grid_prompts": 1, "grid_images": 1},
}
PROBES = 2 * 2 * 2  # rows that prove two versions of trained weights: tuned and base, both halves of guidance


def invoke(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [*map(str, arguments)])


def steps_of(run: Path) -> list[dict[str, Any]]:
    return [row for row in read_rows(run / "metrics.jsonl") if row["kind"] == "step"]


class CountedRun:
    """A finished run, and the rows with which its network was called: by whether there was a gradient."""

    def __init__(self, path: Path, rows: dict[bool, int]) -> None:
        self.path, self.rows = path, rows
        self.summary: dict[str, Any] = json.loads((path / "summary.json").read_text())


@pytest.fixture(
    scope="module",
    params=[pytest.param("trajectory_preference", marks=pytest.mark.slow), "policy_gradient", "diffusion_dpo"],
)
def run(request: pytest.FixtureRequest, small_values: dict[str, Any], tmp_path_factory: Any) -> CountedRun:
    """The trajectory view is slow: it is a configuration's γ = 1 and nothing else (`test_config.py`)."""
    root: Path = tmp_path_factory.mktemp(request.param)
    train = {**small_values["train"], "objective": request.param, **OBJECTIVES[request.param]}
    values = {**small_values, **SIZES, "train": train, "sampler": {**small_values["sampler"], "exact": True}}
    if request.param == "diffusion_dpo":  # which needs none of a window's states
        values["steps"] = {**small_values["steps"], "window": [1, 3]}
    (root / "config.yaml").write_text(yaml.safe_dump(values))
    rows, forward = {True: 0, False: 0}, UNet2DConditionModel.forward

    def count(self: Any, x: torch.Tensor, *rest: Any, **named: Any) -> Any:
        rows[torch.is_grad_enabled()] += len(x)
        return forward(self, x, *rest, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UNet2DConditionModel, "forward", count)
        result = invoke("train", "--local", root / "config.yaml", "--out", root / "run")
    assert result.exit_code == 0, result.output
    return CountedRun(root / "run", rows)


# What the runner and a cut could spoil is the same for all: the learner's state and the groups.
THE_OTHERS = ["policy_gradient", "diffusion_dpo"]


def objective_of(run: CountedRun) -> str:
    return RunDirectory(run.path).read_config().train.objective


def test_its_metrics_are_the_shared_ones_and_its_own(run: CountedRun) -> None:
    objective, rows = objective_of(run), steps_of(run.path)
    assert len(rows) == 6
    for row in rows:
        assert row.keys() >= SHARED | OWN[objective]
        assert ("step_draws" in row) == ("clipped" in row) == (objective != "diffusion_dpo")
        assert ("ratio/mean" in row) == (objective == "policy_gradient")
    assert rows[-1]["grad_norm"] > 0


def test_the_rows_of_its_network_are_those_that_were_called(run: CountedRun) -> None:
    counted = run.summary["network_rows"]
    learner = counted["learner"]
    assert learner["forward_with_gradient"] == learner["backward"] == run.rows[True]
    without = counted["sampler"]["forward"] + counted["judging"]["forward"] + learner["forward"]
    assert without + PROBES == run.rows[False]
    assert counted["sampler"]["forward"] == 2 * 4 * 4 * 4 * 2  # stages, groups, pictures, steps, halves
    assert learner["forward"] > 0


def test_it_is_reported_compared_and_exported(run: CountedRun, tmp_path: Path) -> None:
    report = invoke("report", run.path, "--out", tmp_path / "report.html")
    assert report.exit_code == 0, report.output
    page = (tmp_path / "report.html").read_text()
    assert 'id="figure-loss"' in page
    assert ('id="figure-steps"' in page) == (objective_of(run) != "diffusion_dpo")
    assert invoke("status", run.path).exit_code == 0
    assert invoke("compare", run.path, run.path).exit_code == 0
    assert invoke("export", run.path, "--to", tmp_path / "card").exit_code == 0
    card = (tmp_path / "card" / "README.md").read_text()
    shown = {"policy_gradient": "KL weight 0.1", "diffusion_dpo": "β = 200"}.get(objective_of(run), "C = 10")
    assert shown in card


@pytest.mark.slow
@pytest.mark.parametrize("run", [*THE_OTHERS, "trajectory_preference"], indirect=True)
def test_a_run_that_is_cut_ends_with_the_same_bytes(run: CountedRun, warm_python: Path, tmp_path: Path) -> None:
    """Killed inside the second stage's training, a step after a checkpoint.

    plain: `test_a_run_killed_at_every_moment_continues_to_the_same_bytes`, of the default objective; and
    `test_a_learner_that_is_cut_and_restored_takes_the_same_steps`, of each learner.
    """
    out = tmp_path / "run"
    command = [warm_python, "-m", "raydense.cli", "train", "--local", run.path.parent / "config.yaml", "--out", out]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 120
    while len(steps_of(out)) < 5 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert process.poll() is None, "the run ended before the moment to cut it"
    os.kill(process_of(process), signal.SIGKILL)
    process.communicate(timeout=60)
    assert invoke("train", "--local", "--resume", out).exit_code == 0
    assert (out / LORA).read_bytes() == (run.path / LORA).read_bytes()
    assert (out / "metrics.jsonl").read_bytes() == (run.path / "metrics.jsonl").read_bytes()
    assert json.loads((out / "summary.json").read_text())["network_rows"] == run.summary["network_rows"]


def test_learning_from_what_it_stored_gives_the_same_bytes(run: CountedRun, tmp_path: Path) -> None:
    assert invoke("train", "--replay-from", run.path, "--out", tmp_path / "run").exit_code == 0
    assert (tmp_path / "run" / LORA).read_bytes() == (run.path / LORA).read_bytes()
    assert steps_of(tmp_path / "run") == steps_of(run.path)
    counted = json.loads((tmp_path / "run" / "summary.json").read_text())["network_rows"]
    assert counted["learner"] == run.summary["network_rows"]["learner"]
    assert counted["sampler"] == counted["judging"] == {"forward": 0}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("run", THE_OTHERS, indirect=True)
def test_on_ray_it_gives_the_same_bytes(run: CountedRun, ray_cluster: None, tmp_path: Path) -> None:
    """plain: `test_where_it_runs_changes_no_byte`, of the default objective."""
    result = invoke("train", run.path.parent / "config.yaml", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    for name in (LORA, "metrics.jsonl", "scores.json"):
        assert (tmp_path / "run" / name).read_bytes() == (run.path / name).read_bytes(), name
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["network_rows"] == run.summary["network_rows"]


def test_the_trajectory_view_is_a_discount_of_1(run: CountedRun) -> None:
    gamma = RunDirectory(run.path).read_config().steps.gamma
    assert gamma == (1.0 if objective_of(run) == "trajectory_preference" else 0.9)  # which the configuration has
