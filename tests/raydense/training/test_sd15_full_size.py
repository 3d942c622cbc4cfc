"""Stable Diffusion 1.5's whole architecture with random weights, written in its own format, through `raydense train`.

`pytest -m slow -s tests/raydense/training/test_sd15_full_size.py` prints times and peak memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors import safe_open
from safetensors.numpy import load_file
from sd15_files import UNET, write_sd15
from typer.testing import CliRunner

from raydense.cli import app


def settings(model: Path, scorer: Path, rank: int) -> dict[str, Any]:
    return {
        "name": "full-size",
        "policy": {"model": str(model), "lora_rank": rank},
        "prompts": {"train": "set://paper-train#index=0"},
        "reward": {"scorer": {"kind": "clip", "name": "clip", "model": str(scorer)}},
        "steps": {"count": 4, "draws": 1},
        "sampler": {"trajectories": 2, "keep": 2, "latent_size": 16, "dtype": "bfloat16", "decode_batch": 1,
                    "threads": 2},
        "stage": {"count": 1, "groups": 1, "steps": 1},
        "train": {"batch_groups": 1, "lr": 1e-4},
        "learner": {"dtype": "bfloat16", "gradient_checkpointing": True, "threads": 2},
        "evaluate": {"prompts": 1, "images_per_prompt": 1, "grid_prompts": 1, "grid_images": 1},
    }  # fmt: skip


def train(values: dict[str, Any], root: Path) -> tuple[Path, str]:
    """Runs the command in a process of its own; returns the run directory and a line of what it cost."""
    (root / "config.yaml").write_text(yaml.safe_dump(values))
    started, out = time.perf_counter(), root / "run"
    command = [sys.executable, "-m", "raydense.cli", "train", root / "config.yaml", "--local", "--out", out]
    with (root / "output").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)  # of this child alone, unlike getrusage
    assert status == 0, (root / "output").read_text()
    peak = usage.ru_maxrss * 1024 / 1e9
    phases = json.loads((out / "summary.json").read_text())["phases_s"]
    return out, f"{time.perf_counter() - started:.0f} s in all, peak memory {peak:.1f} GB; seconds by phase: {phases}"


def check(run: Path, tensors: int, values: int) -> None:
    """One group was sampled, one gradient step taken: every B has left zero, and the metrics say how."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (stage,) = (row for row in rows if row["kind"] == "stage")
    (step,) = (row for row in rows if row["kind"] == "step")
    assert stage["replay/groups"] == 1
    assert step["loss"] == pytest.approx(np.log(2), rel=1e-6)
    assert step["log_ratio/abs_max"] == 0.0
    assert step["grad_norm"] > 0
    lora = load_file(run / "lora" / "pytorch_lora_weights.safetensors")
    assert len(lora) == tensors
    assert sum(array.size for array in lora.values()) == values
    assert all(array.dtype == np.float32 for array in lora.values())
    assert all(array.any() for name, array in lora.items() if ".up." in name)
    with safe_open(run / "lora" / "pytorch_lora_weights.safetensors", framework="np") as file:
        described = json.loads(file.metadata()["lora_adapter_metadata"])
    assert described["reward"]["kind"] == "clip"
    print(
        f"\nre-scoring noise of the bfloat16 sampler under the bfloat16 learner: {step['log_ratio/old_abs_mean']:.1e}"
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_full_architecture_is_sampled_and_trained(scorer_dir: Path, tmp_path: Path) -> None:
    """plain: `test_the_same_path_in_a_small_configuration`."""
    started = time.perf_counter()
    model = write_sd15(tmp_path / "sd15")
    written = time.perf_counter() - started
    run, cost = train(settings(model, scorer_dir, rank=4), tmp_path)
    check(run, tensors=256, values=797_184)
    size = sum(file.stat().st_size for file in model.rglob("*.safetensors")) / 1e9
    print(f"writing {size:.2f} GB of weights {written:.0f} s; training {cost}")


def test_the_same_path_in_a_small_configuration(
    pipeline_dir: Path, scorer_dir: Path, small_values: dict[str, Any], tmp_path: Path
) -> None:
    values = settings(pipeline_dir, scorer_dir, rank=2)
    values["sampler"]["latent_size"] = 8
    values["train"]["lr"] = 1e-2  # one step must show in a small network's bfloat16
    values["prompts"] = {"train": small_values["prompts"]["train"]}  # the small tokenizer knows letters alone
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    arguments = ["train", str(tmp_path / "config.yaml"), "--local", "--out", str(tmp_path / "run")]
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code == 0, ended.output
    check(tmp_path / "run", tensors=64, values=2 * (3 * 144 + 256))


def test_sd15_with_the_papers_rank_has_the_papers_lora(make_lora_shapes: Callable[[], dict[str, Any]]) -> None:
    shapes = make_lora_shapes()
    assert len(shapes) == 256
    assert sum(a * b for a, b in shapes.values()) == 797_184


@pytest.fixture
def make_lora_shapes() -> Callable[[], dict[str, Any]]:
    from peft import LoraConfig

    from raydense.families.known import family_of
    from raydense.pipelines.pipeline_files import PipelineFiles
    from raydense.planning.footprint import lora_shapes

    lora = LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    family = family_of(PipelineFiles("sd15", parts={"unet": UNET}))
    return lambda: lora_shapes(family, lora)
