"""A run with `train.ema`: its result is the average of its steps, judged and written beside the last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file
from typer.testing import CliRunner

import raydense
from raydense.cli import app
from raydense.core.statistics import clustered_interval
from raydense.core.types import tensor_checksum
from raydense.diffusion.lora import FILE_NAME, read_origin
from raydense.evaluation.candidates import find_sources
from raydense.evaluation.export import export
from raydense.records.metrics import read_rows
from raydense.records.scores import read_scores

DECAY = 0.6
CHECKPOINTS = ("stage-0000-step-000001", "stage-0000-step-000002", "stage-0001", "stage-0001-step-000001",
               "stage-0001-step-000002", "stage-0002")  # fmt: skip
PARTS = {"unet.": "", ".default.weight": "", ".weight": "", "lora.down": "lora_A", "lora.up": "lora_B"}


@pytest.fixture(scope="module")
def said_and_run(small_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Six steps, a checkpoint after each; samplers roll out by the average."""
    root = tmp_path_factory.mktemp("averaged")
    values = {
        **small_values,
        "train": {**small_values["train"], "ema": DECAY, "ema_rollouts": True},
        "checkpoint": {"every_steps": 1, "keep_last": 99},
        "evaluate": {**small_values["evaluate"], "every_steps": 2},
    }
    (root / "config.yaml").write_text(yaml.safe_dump(values))
    result = CliRunner().invoke(app, ["train", "--local", str(root / "config.yaml"), "--out", str(root / "run")])
    assert result.exit_code == 0, result.output
    return result.stdout, root / "run"


@pytest.fixture(scope="module")
def run(said_and_run: tuple[str, Path]) -> Path:
    return said_and_run[1]


def in_order(tensors: dict[str, np.ndarray]) -> list[np.ndarray]:
    """A checkpoint's and a LoRA file's tensors, whose names differ, in one order."""

    def plain(name: str) -> str:
        for ours, theirs in PARTS.items():
            name = name.replace(ours, theirs)
        return name

    return [tensors[name] for name in sorted(tensors, key=plain)]


def test_the_lora_is_the_average_of_the_steps_and_the_last_ones_lies_beside_it(run: Path) -> None:
    steps = [in_order(load_file(run / "checkpoints" / name / "lora.safetensors")) for name in CHECKPOINTS]
    shares = np.array([DECAY ** (len(steps) - 1 - i) for i in range(len(steps))])
    result, last = (in_order(load_file(run / place / FILE_NAME)) for place in ("lora", "lora-last-step"))
    assert len(result) == len(last) == 64
    for place, (averaged, final) in enumerate(zip(result, last, strict=True)):
        terms = [share * step[place].astype(np.float64) for share, step in zip(shares, steps, strict=True)]
        np.testing.assert_allclose(averaged, np.sum(terms, axis=0) / shares.sum(), rtol=1e-4, atol=1e-7)
        assert final.tobytes() == steps[-1][place].tobytes()
    assert any(averaged.tobytes() != final.tobytes() for averaged, final in zip(result, last, strict=True))
    assert read_origin(run / "lora" / FILE_NAME)["averaged"] == DECAY
    assert "averaged" not in read_origin(run / "lora-last-step" / FILE_NAME)


def test_both_are_judged_on_the_same_prompts_and_noise(said_and_run: tuple[str, Path]) -> None:
    said, run = said_and_run
    summary, scores = json.loads((run / "summary.json").read_text()), read_scores(run)
    assert scores is not None
    assert scores.last_step is not None
    gains = []
    for name, found in (("averaged", scores.judged), ("last step", scores.last_step)):
        told = summary if name == "averaged" else summary["last_step"]
        for prompts, judges in found.items():
            np.testing.assert_array_equal(judges["clip"].before, scores.judged[prompts]["clip"].before)
            row = told["reward"][prompts]
            assert row["gain"]["mean"] == pytest.approx(judges["clip"].gain.mean(), rel=1e-5)
            assert f"{row['gain']['mean']:+.4f}" in said
            gains.append(row["gain"]["mean"])
    assert len(set(gains)) == 4
    table = raydense.Run.open(run).scores().to_pylist()
    assert [row["last_step"] for row in table if row["prompts"] == "unseen"] == list(
        scores.last_step["unseen"]["clip"].after.ravel()
    )
    assert f"{run}/lora-last-step/{FILE_NAME}" in said.replace("\n", "")


def test_judging_in_between_and_the_rollouts_are_of_the_average(run: Path) -> None:
    rows = list(read_rows(run / "metrics.jsonl"))
    judged = [row for row in rows if "evaluate/unseen/clip" in row]
    assert [row["step"] for row in judged] == [0, 2, 4, 6]
    final = judged[-1]
    scores = read_scores(run)
    assert scores is not None
    after = scores.judged["unseen"]["clip"].after.astype(np.float32)
    assert final["evaluate/unseen/clip"] == pytest.approx(clustered_interval(after).mean)
    stages = [row for row in rows if row["kind"] == "stage"]
    assert [(row["policy/version"], row["policy/staleness"]) for row in stages] == [(0, 0), (3, 0)]
    average = load_file(run / "checkpoints/stage-0001/average.safetensors")
    assert average.pop("taken") == 3
    theta = load_file(run / "checkpoints/stage-0001/lora.safetensors")
    assert stages[1]["weights_checksum"] == tensor_checksum(average) != tensor_checksum(theta)


def test_it_is_evaluated_and_exported_and_so_is_the_last_step(run: Path, tmp_path: Path) -> None:
    sources = find_sources([str(run), str(run / "lora-last-step")])
    assert [source.name for source in sources] == ["run", "run (last step)"]
    assert sources[0].config == sources[1].config is not None
    export(run, tmp_path / "exported")
    assert (tmp_path / "exported" / FILE_NAME).read_bytes() == (run / "lora" / FILE_NAME).read_bytes()
    assert "averaged over the steps, decay 0.6 a step" in (tmp_path / "exported" / "README.md").read_text()
    result = CliRunner().invoke(app, ["report", str(run), "--out", str(tmp_path / "report.html")])
    assert result.exit_code == 0, result.output
    assert "averaged over the steps, decay 0.6 a step" in (tmp_path / "report.html").read_text()
