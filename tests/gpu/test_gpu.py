"""`pytest -m gpu`: what only a GPU shows, with random weights, without network; at most 5 minutes on one.

RAYDENSE_REHEARSE=cpu pytest -m gpu tests/gpu      # every line on a CPU, with small networks
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import yaml
from sd15_files import write_sd15
from typer.testing import CliRunner

from learner.gang import LOOPBACK, Gang
from raydense.checks.noise import drifted
from raydense.cli import app
from raydense.config import Config
from raydense.core.memory import DeviceMemoryError
from raydense.core.types import TrajectoryGroup, WorkUnit
from raydense.diffusion.compiler import SMALL
from raydense.families.conditioning import repeated
from raydense.pipelines.pipeline_files import read_pipeline
from raydense.planning.dry_run import CUDA_CONTEXT, plan_run
from raydense.wiring.policies import build_policy
from raydense.wiring.roles import build_learner, build_sampler

REHEARSAL = os.environ.get("RAYDENSE_REHEARSE") == "cpu"
DEVICE = torch.device("cpu" if REHEARSAL else "cuda")
LORA = "lora/pytorch_lora_weights.safetensors"
CLOSE = 0.15  # of a memory plan
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(280),
    pytest.mark.skipif(not REHEARSAL and not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory, pipeline_dir: Path) -> Path:
    return pipeline_dir if REHEARSAL else write_sd15(tmp_path_factory.mktemp("sd15") / "pipeline")


@pytest.fixture(scope="module")
def values(sd15: Path, scorer_dir: Path, small_values: dict[str, Any]) -> dict[str, Any]:
    """The multi-prompt preset's precision and guidance on SD1.5's architecture, short."""
    return {
        "name": "gpu",
        "policy": {"model": str(sd15), "lora_rank": 4},
        "prompts": small_values["prompts"] if REHEARSAL else {"train": "set://paper-train"},
        "reward": {"scorer": {"kind": "clip", "name": "clip", "model": str(scorer_dir)}},
        "steps": {"count": 4, "draws": 2},
        "sampler": {"trajectories": 4, "keep": 3, "guidance_scale": 7.5, "dtype": "bfloat16", "decode_batch": 2},
        "stage": {"count": 2, "groups": 3, "steps": 4},
        "train": {"batch_groups": 2, "lr": 1e-3, "clip": 0.1},
        "learner": {"dtype": "float16", "micro_batch": 1},
        "evaluate": {"prompts": 2, "images_per_prompt": 2, "grid_prompts": 1, "grid_images": 1},
    }


@pytest.fixture(scope="module")
def config(values: dict[str, Any]) -> Config:
    return Config.model_validate(values)


@pytest.fixture(scope="module")
def file(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gpu") / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def groups(config: Config) -> list[TrajectoryGroup]:
    """What a sampler on the device rolled out with the initial weights."""
    sampler = build_sampler(config)
    unit = WorkUnit(0, 0, (0, 1, 2), ("a cat", "a dog", "a fox"), 0)
    weights = build_policy(config, dtype="bfloat16", device=DEVICE, with_decoder=False).weights()
    return list(sampler.sample(unit, weights)[1])


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


@pytest.mark.skipif(REHEARSAL, reason="CUDA graphs are CUDA's")
@torch.no_grad()
def test_recorded_calls_are_the_calls_themselves_and_follow_the_weights(config: Config) -> None:
    plain, recorded = (
        build_policy(config, dtype="bfloat16", device=DEVICE, with_decoder=False, merged=True, recorded=recorded)
        for recorded in (False, True)
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


def peak(work: Callable[[], object]) -> int:
    """Bytes that PyTorch's allocator gave out at once."""
    if REHEARSAL:
        work()
        return 0
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    print(f"allocated {torch.cuda.max_memory_allocated():.3g}, reserved {torch.cuda.max_memory_reserved():.3g}")
    return torch.cuda.max_memory_allocated()


@pytest.mark.parametrize("role", ["sampler", "learner"])
def test_memory_is_what_was_planned(config: Config, groups: list[TrajectoryGroup], role: str) -> None:
    plan = plan_run(config, read_pipeline(config.policy.model, None, fetch=False), None, tflops=1.0)
    if role == "sampler":
        sampler = build_sampler(config)
        unit = WorkUnit(0, 0, tuple(range(8)), ("a cat",) * 8, 0)  # 32 pictures, as are drawn to judge
        weights = build_policy(config, dtype="bfloat16", device=torch.device("cpu"), with_decoder=False).weights()
        work: Callable[[], object] = partial(sampler.sample, unit, weights)
        planned = plan.sampler_gpu_bytes
    else:
        learner: Any = build_learner(config, fetch=lambda handles: [groups[i] for i in handles])
        learner.begin_stage(0, list(range(3)))
        work, planned = partial(learner.train, 1), plan.learner_gpu_bytes
    found = peak(work)
    print(f"planned {planned - CUDA_CONTEXT:.3g}, found {found:.3g}")
    assert REHEARSAL or planned - CUDA_CONTEXT == pytest.approx(found, rel=CLOSE)


@pytest.mark.skipif(REHEARSAL, reason="a CPU's memory is not fenced")
def test_memory_that_runs_out_is_one_line_with_what_to_lower(config: Config) -> None:
    sampler = build_sampler(config)
    weights = build_policy(config, dtype="bfloat16", device=torch.device("cpu"), with_decoder=False).weights()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(4e9 / torch.cuda.get_device_properties(0).total_memory)
    try:
        unit = WorkUnit(0, 0, tuple(range(24)), ("a cat",) * 24, 0)
        with pytest.raises(DeviceMemoryError, match=r"^CUDA out of memory[^\n]*; lower sampler.unit_prompts or"):
            sampler.sample(unit, weights)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
