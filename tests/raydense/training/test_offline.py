"""Learning from stored groups: without a sampler, and to the same bytes as the run that sampled them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from raydense.cli import app

LORA = "lora/pytorch_lora_weights.safetensors"


def train(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


@pytest.fixture(scope="module")
def source(small_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that kept its segments."""
    root = tmp_path_factory.mktemp("source")
    config = root / "config.yaml"
    evaluate = {**small_values["evaluate"], "every_steps": 2}  # which takes samplers, and is left out offline
    replay = {"segments": True, "keep_segments": True}
    config.write_text(yaml.safe_dump({**small_values, "replay": replay, "evaluate": evaluate}))
    assert train(config, "--local", "--out", root / "run").exit_code == 0
    return root / "run"


def step_rows(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "step"]


def test_the_same_settings_give_the_same_bytes(source: Path, tmp_path: Path) -> None:
    assert train("--replay-from", source, "--out", tmp_path / "run").exit_code == 0
    assert (tmp_path / "run" / LORA).read_bytes() == (source / LORA).read_bytes()
    assert step_rows(tmp_path / "run") == step_rows(source)


def test_it_may_lie_at_a_uri(source: Path, tmp_path: Path) -> None:
    assert train("--replay-from", source, "--out", f"file://{tmp_path / 'there'}").exit_code == 0
    assert (tmp_path / "there" / LORA).read_bytes() == (source / LORA).read_bytes()
    assert (tmp_path / "there" / "summary.json").exists()


def test_what_is_learned_may_change(source: Path, tmp_path: Path) -> None:
    assert train("--replay-from", source, "--out", tmp_path / "run", "--set", "train.c=3").exit_code == 0
    assert (tmp_path / "run" / LORA).read_bytes() != (source / LORA).read_bytes()
    assert len(step_rows(tmp_path / "run")) == len(step_rows(source))


def test_what_was_sampled_may_not(source: Path, tmp_path: Path) -> None:
    refused = train("--replay-from", source, "--out", tmp_path / "run", "--set", "sampler.guidance_scale=2")
    assert refused.exit_code == 2
    assert "sampler.guidance_scale: 3.0 -> 2.0" in refused.output
    assert not (tmp_path / "run").exists()


def test_a_missing_unit_is_named_before_any_work(source: Path, tmp_path: Path) -> None:
    partial = tmp_path / "partial"
    shutil.copytree(source, partial)
    (partial / "segments" / "stage-0001" / "unit-000002.arrow").unlink()
    refused = train("--replay-from", partial, "--out", tmp_path / "run")
    assert refused.exit_code == 2
    assert "lacks unit 2 of stage 1" in refused.output
    assert not (tmp_path / "run").exists()


def test_a_stage_larger_than_the_buffer_is_refused_by_its_first_unit(source: Path, tmp_path: Path) -> None:
    refused = train("--replay-from", source, "--out", tmp_path / "run", "--set", "replay.max_bytes=30000")
    assert refused.exit_code == 2
    assert "replay.max_bytes=30000 is less than the" in refused.output
    assert "of a stage's 5 groups" in refused.output
