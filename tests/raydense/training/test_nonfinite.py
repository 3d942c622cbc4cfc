"""Runs in which something stops being a number: nothing of it is trained on or shown, and what it was is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from raydense.cli import app
from raydense.diffusion.lora import FILE_NAME


def test_three_steps_without_a_finite_loss_stop_the_run_and_name_the_batch(
    small_values: dict[str, Any], tmp_path: Path
) -> None:
    values = {**small_values, "stage": {"count": 1, "groups": 5, "steps": 8}, "checkpoint": {"every_steps": 1}}
    values["train"] = {**values["train"], "lr": 1e30}  # the first step throws the policy out of float32's range
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    ended = CliRunner().invoke(app, ["train", str(tmp_path / "c.yaml"), "--local", "--out", str(tmp_path / "run")])

    assert ended.exit_code == 1
    assert "3 gradient steps in a row had no finite loss or gradient" in ended.output
    what = json.loads((tmp_path / "run" / "failure.json").read_text())["what"]
    assert "step 4 of stage 0: groups [" in what
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["skipped"] for row in rows if row["kind"] == "step"] == [0.0, 1.0, 1.0]
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    assert all(np.isfinite(tensor).all() for tensor in load_file(newest / "lora.safetensors").values())


def test_latents_that_are_no_numbers_end_the_run_with_the_unit_and_the_step(
    small_runs: tuple[Path, Path], small_values: dict[str, Any], tmp_path: Path
) -> None:
    tensors = load_file(small_runs[0] / "lora" / FILE_NAME)
    far = {name: array * np.float32(1e30 if ".up." in name else 1) for name, array in tensors.items()}
    save_file(far, tmp_path / FILE_NAME)
    values = {**small_values, "policy": {**small_values["policy"], "init_lora": str(tmp_path / FILE_NAME)}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    ended = CliRunner().invoke(app, ["train", str(tmp_path / "c.yaml"), "--local", "--out", str(tmp_path / "run")])
    assert ended.exit_code == 1
    line = ended.stderr.splitlines()[-1]
    assert "non-finite latents (U-Net, step t = 0 of T = 4); a LoRA may have diverged" in line
    assert "(pictures [0, 1, 2, 3], run seed 3, prompts 'a cat', " in line
    assert "tried 3 times) (UnitFailed; --debug shows where)" in line
    assert not list((tmp_path / "run").rglob("*.png"))
