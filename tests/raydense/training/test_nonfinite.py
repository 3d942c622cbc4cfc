"""A run whose loss stops being a number: nothing of it reaches the weights, and the batch is written down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import load_file
from typer.testing import CliRunner

from raydense.cli import app


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
