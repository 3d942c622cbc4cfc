"""The steps that the loss drew, and what was clipped of each: counted while a run trains, or drawn again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learner.gang import Gang
from raydense.config import Config
from raydense.records.metrics import read_rows
from raydense.report.by_step import clip_figure, expected_shares, gradient_figure, spread_figure, step_figure
from raydense.report.run_data import read_run
from raydense.report.step_draws import StepDraws, draw_counts
from raydense.wiring.roles import make_batches


def keep_rows(file: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if wanted(json.loads(line))))


@pytest.mark.parametrize("choice", ["random", "best_worst"])
def test_the_histogram_counts_what_the_learner_draws(
    choice: str, small_config: Callable[..., Config], make_policy: Callable[..., Any], make_groups: Callable[..., Any]
) -> None:
    config = small_config(
        train={"tuple_choice": choice, "tuples": 2}, steps={"gamma": 0.6, "exclude_last": 1, "draws": 3}
    )
    source = make_batches(config, lambda groups: groups, torch.device("cpu"), Gang(), config.stage.groups)
    source.begin_stage(0, make_groups(make_policy(), count=config.stage.groups, keep=config.sampler.keep))
    drawn = [np.bincount(source.take(step).plan.steps.flatten().numpy(), minlength=4).tolist() for step in range(20)]
    draws = StepDraws(config)
    assert [draws.counts(step) for step in range(1, 21)] == drawn
    counts, counted = draw_counts(config, 20)
    assert counted == 20
    assert counts.tolist() == np.sum(drawn, axis=0).tolist()
    assert counts[3] == 0
    assert expected_shares(config.steps) == pytest.approx([1 / 1.96, 0.6 / 1.96, 0.36 / 1.96, 0])


def test_of_a_long_run_evenly_spaced_steps_are_counted(small_config: Callable[..., Config]) -> None:
    counts, counted = draw_counts(small_config(stage={"steps": 10**6}), 40_000)
    assert counted == 4000
    assert counts.sum() == 4000 * 4 * 2
    assert counts / counts.sum() == pytest.approx(expected_shares(small_config().steps), abs=0.01)


@pytest.mark.parametrize("steps", [6, 4])
@pytest.mark.parametrize("counted", [0, 3])
def test_what_a_run_counted_while_it_trained_is_what_is_drawn_again_of_earlier_code(
    steps: int, counted: int, copy: Path
) -> None:
    """Whether all of the rows, those before a resume with later code, or none are without their counts."""
    keep_rows(copy / "metrics.jsonl", lambda row: row["step"] <= steps)
    figure = step_figure(read_run(copy))
    assert figure is not None
    assert f"Histogram of {steps * 4 * 2:,} step draws" in figure.alternative
    assert "Counted in" not in figure.caption
    rows = list(read_rows(copy / "metrics.jsonl"))
    for row in rows:
        assert ("step_draws" in row) == (row["kind"] == "step")
        if row["step"] > counted:
            row.pop("step_draws", None)
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert step_figure(read_run(copy)) == figure


def test_the_clipped_share_of_a_step_is_of_its_own_log_ratios(copy: Path) -> None:
    rows = list(read_rows(copy / "metrics.jsonl"))
    for row in rows:
        if row["kind"] == "step":  # two trajectories a tuple
            row |= {"step_draws": [4, 3, 1, 0], "clipped": [0, 3, 1, 0]}
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    figure = clip_figure(read_run(copy))
    assert figure is not None
    assert figure.alternative == "Clipped share by denoising step: 25.0% of all, most at step 1: 50.0%."
    keep_rows(copy / "metrics.jsonl", lambda row: row["kind"] != "step")
    assert clip_figure(read_run(copy)) is None


def with_told(copy: Path, **told: Any) -> None:
    """Gradient steps that drew 4, 3, 1 and 0 times, and told the same each time."""
    rows = list(read_rows(copy / "metrics.jsonl"))
    told = {"step_draws": [4, 3, 1, 0], **told}
    changed = [{**row, **told} if row["kind"] == "step" else row for row in rows]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))


def test_a_steps_share_of_the_gradient_is_of_all_its_draws(copy: Path) -> None:
    with_told(copy, gradient=[1.0, 2.0, 2.0, None])  # squares 4 : 12 : 4, and 1 : 4 : 4 of a draw each
    figure = gradient_figure(read_run(copy))
    assert figure is not None
    assert figure.alternative == (
        "Share of the squared gradient by denoising step: most at step 1: 60.0%; the steps from 2 on 20.0%, drawn "
        "equally often 44.4%."
    )
    assert "(in " not in figure.caption
    with_told(copy, gradient=[0.0, 0.0, 0.0, None])  # of equal rewards alone
    assert gradient_figure(read_run(copy)) is None


def test_the_spread_of_a_step_is_a_root_mean_square_beside_its_clip(copy: Path) -> None:
    with_told(copy, spread=[0.01, 0.03, 0.2, None])
    figure = spread_figure(read_run(copy))
    assert figure is not None
    assert figure.alternative == "Spread by denoising step: from 0.01 at step 0 to 0.2 at step 2."
    assert figure.caption.endswith("Dashed: δ.")
    with_told(copy, clip=[0.05, 0.06, None, None])
    figure = spread_figure(read_run(copy))
    assert figure is not None
    assert figure.caption.endswith("Dots: δ of the last gradient step.")


def test_of_earlier_code_there_is_what_it_told(copy: Path) -> None:
    """Whether it trained all of the run or the first half."""
    rows = list(read_rows(copy / "metrics.jsonl"))
    for last, said in ((3, "(in 3 of 6 gradient steps)"), (6, None)):
        for row in rows:
            if row["kind"] == "step" and row["step"] <= last:
                row.pop("gradient", None)
                row.pop("spread", None)
        (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for make in (gradient_figure, spread_figure):
            figure = make(read_run(copy))
            assert (figure is None) == (said is None)
            assert figure is None or str(said) in figure.caption
