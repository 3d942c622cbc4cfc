"""What a run ends with: its gains, with errors that do not take the pictures of one prompt for independent."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from raydense.core.statistics import clustered_interval, estimate, is_below_zero
from raydense.records.scores import Judgement
from raydense.training.judging import paired_gains
from raydense.training.summary import fallen, gain_sheet, losses

BEFORE = np.array([[0.0, 1.0, 2.0], [2.0, 4.0, 6.0]], np.float32)  # 2 prompts, 3 pictures of each
GAIN = np.array([[1.0, 2.0, 3.0], [5.0, 7.0, 9.0]], np.float32)
CLUSTERED = "n, seed 3: mean score, before and after (± standard error, clustered by prompt"


def summary(before: Any, gain: Any, monitors: dict[str, Any] | None = None) -> dict[str, Any]:
    scores = {"train": {"clip": before, **dict.fromkeys(monitors or {}, before)}}
    tuned = {"train": {"clip": before + gain, **{name: before + of for name, of in (monitors or {}).items()}}}
    found = paired_gains(Judgement(scores), Judgement(tuned))
    return {"name": "n", "seed": 3, "scorer": "clip", "reward": found.pop("clip"), "monitors": found}


def test_the_error_of_a_gain_is_clustered_by_prompt() -> None:
    sheet = gain_sheet(summary(BEFORE, GAIN, {"watched": -GAIN}))
    # the prompts gained 2 and 7: their mean's error is 2.5; the six pictures as if independent would claim 1.258
    assert sheet.rows == (
        ("clip (trained on)", "train", "2.5000", "7.0000", "+4.5000 ± 2.5000"),
        ("watched", "train", "2.5000", "-2.0000", "-4.5000 ± 2.5000"),
    )
    assert sheet.title == f"{CLUSTERED})"
    assert estimate(GAIN).se == pytest.approx(math.sqrt(47.5 / 5 / 6))


def test_of_one_picture_a_prompt_both_errors_are_one() -> None:
    sheet = gain_sheet(summary(BEFORE[:, :1], GAIN[:, :1]))
    assert sheet.rows[0][-1] == "+3.0000 ± 2.0000"
    assert sheet.title == f"{CLUSTERED})"
    assert estimate(GAIN[:, :1]).se == estimate(GAIN[:, :1]).se_by_prompt


def test_of_one_prompt_its_pictures_are_the_sample_and_the_title_says_so() -> None:
    sheet = gain_sheet(summary(BEFORE[:1], GAIN[:1]))
    assert sheet.rows[0][-1] == "+2.0000 ± 0.5774"  # 1 / √3
    assert sheet.title == f"{CLUSTERED}; of one prompt alone, over its pictures)"
    interval = clustered_interval(GAIN[:1])  # the same sample as that of the intervals
    assert interval.high - interval.mean == pytest.approx(4.3027 * 0.57735, rel=1e-4)  # Student's, 2 degrees of freedom


def test_a_single_picture_has_no_error() -> None:
    sheet = gain_sheet(summary(BEFORE[:1, :1], GAIN[:1, :1]))
    assert sheet.rows[0][-1] == "+1.0000"
    assert sheet.title == f"{CLUSTERED})"


def test_a_run_with_an_average_shows_the_last_step_beside_it() -> None:
    last = summary(BEFORE, GAIN - 1, {"watched": GAIN})
    whole = summary(BEFORE, GAIN, {"gone": -GAIN})  # a monitor that failed has no row
    sheet = gain_sheet({**whole, "last_step": {"reward": last["reward"], "monitors": last["monitors"]}})
    assert (sheet.columns, sheet.names) == (("judge", "prompts", "weights", "before", "after", "gain"), 3)
    assert sheet.rows == (
        ("clip (trained on)", "train", "averaged", "2.5000", "7.0000", "+4.5000 ± 2.5000"),
        ("clip (trained on)", "train", "last step", "2.5000", "6.0000", "+3.5000 ± 2.5000"),
        ("gone", "train", "averaged", "2.5000", "-2.0000", "-4.5000 ± 2.5000"),
        ("watched", "train", "last step", "2.5000", "7.0000", "+4.5000 ± 2.5000"),
    )


def test_a_run_that_was_not_judged_has_an_empty_table() -> None:
    assert gain_sheet({"name": "n", "seed": 3, "scorer": "clip", "reward": {}, "monitors": {}}).rows == ()


def judged(before: Any, gain: Any) -> tuple[Judgement, Judgement]:
    return Judgement({"train": {"clip": before}}), Judgement({"train": {"clip": before + gain}})


FELL = np.repeat(np.array([[-9.0], [-10.0], [-11.0], [-12.0]], np.float32), 3, axis=1)  # 4 prompts


def test_a_score_that_certainly_fell_is_said() -> None:
    before = np.zeros_like(FELL)
    assert fallen(*judged(before, FELL), "clip") == ["train"]
    assert losses({**summary(before, FELL), "worse_on": ["train"]}) == [
        "the LoRA is worse than what training began with: clip on train prompts -10.5 ± 0.65; start again with a lower "
        "train.lr or fewer stage.steps"
    ]
    one = np.array([[-9.0, -10.0, -11.0, -12.0]], np.float32)  # of one prompt, its pictures are the sample
    assert fallen(*judged(0 * one, one), "clip") == ["train"]
    (line,) = losses({**summary(0 * one, one), "worse_on": ["train"]})
    assert "-10.5 ± 0.65" in line


@pytest.mark.parametrize("gain", [GAIN, -GAIN, 0 * GAIN], ids=["rose", "perhaps fell", "stayed"])
def test_what_rose_stayed_or_only_perhaps_fell_is_not(gain: Any) -> None:
    assert fallen(*judged(BEFORE, gain), "clip") == []


def test_what_cannot_be_told_is_not_said() -> None:
    assert fallen(*judged(BEFORE[:1, :1], -GAIN[:1, :1]), "clip") == []
    assert losses(summary(BEFORE, -GAIN)) == []  # of earlier code
    assert losses({}) == []


@pytest.mark.parametrize("prompts", [2, 4, 16])
def test_pure_noise_falls_as_rarely_as_the_test_says(prompts: int) -> None:
    """Student's, one-sided, at three sigmas: 0.00135 of 20,000 are 27."""
    draws = np.random.default_rng(prompts).standard_normal((20_000, prompts, 1))
    falls = sum(is_below_zero(gain, 3.0) for gain in draws)
    assert 0.4 * 27 < falls < 1.6 * 27
