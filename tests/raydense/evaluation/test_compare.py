"""`raydense compare`: settings that differ, and scores side by side, paired where the prompts are the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from raydense.cli import app
from raydense.core.statistics import clustered_interval
from raydense.evaluation.compare import differences, read_runs, score_rows
from raydense.records.scores import read_scores

Runs = tuple[Path, Path]


def compare(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


def test_only_settings_that_differ_are_shown(small_runs: Runs) -> None:
    assert differences(read_runs(small_runs)) == {
        "policy.lora_alpha": [None, 6.0],
        "policy.lora_rank": [2, 3],
        "seed": [3, 4],
    }
    assert differences(read_runs([small_runs[0]] * 2)) == {}


def test_scores_of_other_noise_are_paired_by_prompt(small_runs: Runs) -> None:
    (row,) = [row for row in score_rows(read_runs(small_runs)) if row.prompts == "unseen"]
    first, second = (read_scores(run) for run in small_runs)
    assert first is not None
    assert second is not None
    ours, theirs = second.judged["unseen"]["clip"].after, first.judged["unseen"]["clip"].after
    by_prompt = (ours.mean(axis=1) - theirs.mean(axis=1))[:, None]
    assert row.differences == [None, clustered_interval(by_prompt)]
    assert row.after == [clustered_interval(theirs), clustered_interval(ours)]
    assert row.gain[0] is not None
    assert row.gain[0].mean == pytest.approx(np.mean(first.judged["unseen"]["clip"].gain))


def test_a_run_differs_from_itself_by_nothing(small_runs: Runs) -> None:
    for row in score_rows(read_runs([small_runs[0]] * 2)):
        difference = row.differences[1]
        assert difference is not None
        assert (difference.mean, difference.low, difference.high) == (0.0, 0.0, 0.0)


def test_what_people_and_machines_read(small_runs: Runs) -> None:
    result = compare(*small_runs)
    assert result.exit_code == 0, result.output
    for said in ("policy.lora_rank", "first", "second - first", "gradient steps", "reward/mean, last stage"):
        assert said in result.output
    found = json.loads(compare(*small_runs, "--json").output)
    assert found["runs"] == ["first", "second"]
    assert found["settings"]["seed"] == ["3", "4"]
    assert {row["prompts"] for row in found["scores"]} == {"train", "unseen"}


def test_a_run_that_has_not_finished_is_compared_as_far_as_it_is(small_runs: Runs, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(small_runs[0], cut)
    (cut / "scores.json").unlink()
    (cut / "summary.json").unlink()
    result = compare(small_runs[1], cut)
    assert result.exit_code == 0, result.output
    assert "reward/mean, last stage" in result.output
    (row, *_) = score_rows(read_runs([small_runs[1], cut]))
    assert row.after[1] is None
    assert row.differences == [None, None]


def test_bad_input_is_one_line(small_runs: Runs, tmp_path: Path) -> None:
    for arguments, said in (
        ((small_runs[0],), "cannot be compared; give two or more"),
        ((small_runs[0], tmp_path), "holds no config.yaml; give the directories of runs"),
    ):
        result = compare(*arguments)
        assert result.exit_code == 2
        assert said in result.stderr
        assert len(result.stderr.splitlines()) == 1
