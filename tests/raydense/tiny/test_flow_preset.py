"""The embedded flow-matching default runs whole: its own chain, its own LoRA, in the wheel's weights."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.numpy import load_file
from typer.testing import CliRunner

from raydense.cli import app

SHORT = ("stage.count=1", "stage.groups=8", "stage.steps=3", "train.batch_groups=8", "learner.threads=1",
         "evaluate.prompts=2", "evaluate.images_per_prompt=2", "sampler.unit_prompts=4")  # fmt: skip


def test_it_learns_within_its_window(tmp_path: Path) -> None:
    settings = [word for setting in SHORT for word in ("--set", setting)]
    ended = CliRunner().invoke(
        app, ["train", "--preset", "tiny-flow", "--local", "--out", str(tmp_path / "run"), *settings]
    )
    assert ended.exit_code == 0, ended.output
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["kind"] == "step"]
    assert [row["log_ratio/abs_mean"] > 0 for row in steps] == [False, True, True]
    assert all(row["step_draws"][0] == sum(row["step_draws"][4:]) == 0 for row in steps)
    assert steps[0]["clip"] == [None] * 10
    tensors = load_file(tmp_path / "run" / "lora" / "pytorch_lora_weights.safetensors")
    assert {name.split(".lora_")[0].split(".", 3)[-1] for name in tensors if "blocks" in name} == {
        "norm1.linear",
        "norm1_context.linear",
    }
    assert any(array.any() for name, array in tensors.items() if ".lora_B." in name)
