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
from raydense.records.segments import read_segment, segment_path

LORA = "lora/pytorch_lora_weights.safetensors"
STAGE = {"count": 1, "groups": 5, "steps": 3}


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


@pytest.mark.parametrize("setting", ["train.c=3", "steps.balance=sensitivity"])
def test_what_is_learned_may_change(setting: str, source: Path, tmp_path: Path) -> None:
    assert train("--replay-from", source, "--out", tmp_path / "run", "--set", setting).exit_code == 0
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


def test_a_window_stores_what_its_steps_read_and_a_wider_one_is_refused(
    small_values: dict[str, Any], tmp_path: Path
) -> None:
    steps, replay = {"count": 4, "draws": 2, "window": [1, 3]}, {"segments": True, "keep_segments": True}
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({**small_values, "stage": STAGE, "steps": steps, "replay": replay})
    )
    assert train(tmp_path / "config.yaml", "--local", "--out", tmp_path / "source").exit_code == 0
    _, groups = read_segment(segment_path(tmp_path / "source" / "segments", 0, 0))
    for group in groups:
        assert (group.first_step, group.latents.shape[1]) == (1, 4)  # x1, x2, x3 and the last
        assert not group.log_probs[:, [0, 3]].any()
        assert group.log_probs[:, 1:3].all()
    rows = step_rows(tmp_path / "source")
    assert all(row["step_draws"][0] == row["step_draws"][3] == 0 for row in rows)
    assert rows[0]["log_ratio/abs_max"] == 0
    assert all(row["log_ratio/abs_mean"] > 0 for row in rows[1:])
    from_stored = ("--replay-from", tmp_path / "source", "--out")
    assert train(*from_stored, tmp_path / "same").exit_code == 0
    assert (tmp_path / "same" / LORA).read_bytes() == (tmp_path / "source" / LORA).read_bytes()
    assert train(*from_stored, tmp_path / "narrow", "--set", "steps.window=[2,3]").exit_code == 0
    for wider, lacking in (("[0,3]", "step 0"), ("[1,4]", "step 3"), ("null", "step 0, 3")):
        refused = train(*from_stored, tmp_path / "wide", "--set", f"steps.window={wider}")
        assert refused.exit_code == 2
        assert f"the loss would draw {lacking}, but the stored groups hold the steps 1 to 2 alone" in refused.output
        assert not (tmp_path / "wide").exists()


def test_steps_that_are_left_out_are_not_stored(small_values: dict[str, Any], tmp_path: Path) -> None:
    steps, replay = {"count": 4, "draws": 2, "exclude_last": 2}, {"segments": True, "keep_segments": True}
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({**small_values, "stage": STAGE, "steps": steps, "replay": replay})
    )
    assert train(tmp_path / "config.yaml", "--local", "--out", tmp_path / "source").exit_code == 0
    _, (group, *_) = read_segment(segment_path(tmp_path / "source" / "segments", 0, 0))
    assert (group.steps, group.latents.shape[1]) == (range(2), 4)
    assert group.log_probs.all()  # there is noise all the same
    refused = train("--replay-from", tmp_path / "source", "--out", tmp_path / "run", "--set", "steps.exclude_last=1")
    assert refused.exit_code == 2
    assert "the loss would draw step 2, but the stored groups hold the steps 0 to 1 alone" in refused.output
