"""`pytest -m gpu`: what only a GPU shows, with random weights, without network; at most 5 minutes on one.

RAYDENSE_REHEARSE=cpu pytest -m gpu tests/gpu      # every line on a CPU, with small networks
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import yaml
from rehearsal import DEVICE, ON_A_GPU, REHEARSAL
from typer.testing import CliRunner

from learner import sgd_learner
from learner.gang import LOOPBACK, Gang
from raydense.checks.noise import drifted
from raydense.cli import app
from raydense.config import Config
from raydense.core.types import TrajectoryGroup
from raydense.diffusion.compiler import SMALL
from raydense.diffusion.proof import prove_effect
from raydense.families.conditioning import repeated
from raydense.wiring.policies import build_policy
from raydense.wiring.roles import build_learner

LORA = "lora/pytorch_lora_weights.safetensors"
pytestmark = ON_A_GPU


@pytest.fixture(scope="module")
def file(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gpu") / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def train(*arguments: str | Path) -> Any:
    result = CliRunner().invoke(app, ["train", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result


def rows(run: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if row["kind"] == kind]


@pytest.mark.parametrize("where", [["--local"], []], ids=["local", "ray"])
def test_a_whole_run(file: Path, tmp_path: Path, where: list[str]) -> None:
    run = tmp_path / "run"
    train(file, *where, "--out", run)
    steps = rows(run, "step")
    assert len(steps) == 2 * 4
    assert steps[0]["log_ratio/abs_max"] == 0.0  # the policy is the base model, to the last bit
    assert all(np.isfinite(step["loss"]) and step["grad_norm"] > 0 for step in steps)
    assert json.loads((run / "summary.json").read_text())["reward"]["train"]["gain"]["n"] == 4
    assert (run / LORA).is_file()


def test_a_checkpoint_of_a_gpu_is_continued_on_a_cpu_and_back(small_values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({**small_values, "stage": {**small_values["stage"], "count": 1}})
    )
    run = tmp_path / "run"
    train("--local", tmp_path / "config.yaml", "--out", run)
    command = [sys.executable, "-m", "raydense.cli", "train", "--local", "--resume", run, "--set", "stage.count=2"]
    blind = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=blind, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    train("--local", "--resume", run, "--set", "stage.count=3")
    assert [row["step"] for row in rows(run, "step")] == list(range(1, 10))


@torch.no_grad()
def test_merged_and_beside_the_weights_are_one_policy(config: Config) -> None:
    beside, merged = (
        build_policy(config, dtype="float32", device=DEVICE, with_decoder=False, merged=merged)
        for merged in (False, True)
    )
    weights = drifted(beside, 1e-2)
    for policy in (beside, merged):
        policy.bind(weights)
    size = merged.network.config.sample_size
    x, t = torch.randn((2, 4, size, size), device=DEVICE), torch.tensor([0, 3], device=DEVICE)
    embeds = repeated(beside.encode("a cat"), 2)
    expected, found = beside.predict(x, t, embeds), merged.predict(x, t, embeds)
    assert float((found - expected).norm()) < 1e-3 * float(expected.norm())
    with beside.reference(), merged.reference():
        assert torch.equal(merged.predict(x, t, embeds), beside.predict(x, t, embeds))


@torch.no_grad()
def test_recorded_calls_are_the_calls_themselves_and_follow_the_weights(config: Config) -> None:
    plain, recorded = (
        build_policy(config, dtype="bfloat16", device=DEVICE, with_decoder=False, merged=True, recorded=recorded)
        for recorded in (False, not REHEARSAL)
    )
    size = plain.network.config.sample_size
    seen = []
    for scale in (0.0, 1e-5, 1e-2, 2e-2):  # of which 1e-5 is not merged
        weights = drifted(plain, scale)
        for policy in (plain, recorded):
            policy.bind(weights)
        for count in (2, SMALL + 1, 3, 2):
            x = torch.randn((count, 4, size, size), generator=torch.Generator().manual_seed(count)).to(DEVICE)
            arguments = x, torch.arange(count, device=DEVICE) % 4, repeated(plain.encode("a cat"), count)
            expected = plain.predict(*arguments)
            assert torch.equal(recorded.predict(*arguments), expected)
        if scale >= 1e-2:  # a proof computes beside what is recorded, and leaves all that it reads where it was
            prove_effect(recorded, x[:1], repeated(plain.encode("a cat"), 1))
            assert torch.equal(recorded.predict(*arguments), expected)
        seen.append(expected)
    assert all(not torch.equal(a, b) for a, b in pairwise(seen))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_equal_weights_have_log_ratio_zero(config: Config, groups: list[TrajectoryGroup], dtype: str) -> None:
    """The learning rate is as good as none, so that π_θ stays π_I while transitions are drawn again."""
    changes = {"train": config.train.model_copy(update={"lr": 1e-30})}
    changes["learner"] = config.learner.model_copy(update={"dtype": dtype})
    learner: Any = build_learner(config.model_copy(update=changes), fetch=lambda handles: [groups[i] for i in handles])
    learner.begin_stage(0, list(range(3)))
    assert [row.values["log_ratio/abs_max"] for row in learner.train(6)] == [0.0] * 6


def test_a_step_waits_for_the_device_at_its_end_alone(
    config: Config, groups: list[TrajectoryGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a δ of each step, marginal ties, and both ways of having log π_I."""
    read = sgd_learner._read

    def waiting_is(mode: str) -> None:
        if not REHEARSAL:
            torch.cuda.set_sync_debug_mode(mode)

    def allowed(function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            waiting_is("default")
            return function(*arguments)

        return call

    for cached in (False, True):
        train = config.train.model_copy(update={"clip": "auto", "ties": "marginal", "tuple_size": 3})
        own = config.learner.model_copy(update={"cache_references": cached})
        changed = config.model_copy(update={"train": train, "learner": own})
        learner: Any = build_learner(changed, fetch=lambda handles: [groups[i] for i in handles])
        learner.begin_stage(0, list(range(3)))
        learner.train(1)
        batch = learner._batches.take(1)
        monkeypatch.setattr(sgd_learner, "_read", allowed(read))
        waiting_is("error")
        try:
            learner._accumulate_gradient(batch)
        finally:
            waiting_is("default")
            monkeypatch.setattr(sgd_learner, "_read", read)
        waiting_is("error")
        try:
            learner._optimizer.step()
            learner.policy.update()
        finally:
            waiting_is("default")


def test_the_references_are_left_out_at_first(config: Config, groups: list[TrajectoryGroup]) -> None:
    train = config.train.model_copy(update={"no_reg_warmup_ratio": 0.5})  # of the run's 8 steps
    learner: Any = build_learner(
        config.model_copy(update={"train": train}), fetch=lambda handles: [groups[i] for i in handles]
    )
    learner.begin_stage(0, list(range(3)))
    found = learner.train(6)
    assert all(np.isfinite(row.values["loss"]) for row in found)
    assert [row.values["log_ratio/abs_mean"] > 0 for row in found] == [False] * 4 + [True] * 2


def test_the_gang_adds_up_over_the_devices_own_backend() -> None:
    gang = Gang(0, 1)
    gang.join(LOOPBACK, gang.listen(LOOPBACK), timeout_s=60)
    try:
        tensor = torch.arange(3.0, device=DEVICE)
        dist.all_reduce(tensor)
        assert tensor.tolist() == [0.0, 1.0, 2.0]
    finally:
        dist.destroy_process_group()


def test_compiled(small_values: dict[str, Any], tmp_path: Path) -> None:
    values = {**small_values, "policy": {**small_values["policy"], "compile": True}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    train("--local", tmp_path / "config.yaml", "--out", tmp_path / "run")
    assert rows(tmp_path / "run", "step")[0]["log_ratio/abs_max"] == 0.0
