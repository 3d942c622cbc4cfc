"""Means and standard errors against hand computations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from raydense.core.statistics import (
    clustered_interval,
    estimate,
    known_rows,
    mean_interval,
    pairs_needed,
    sign_test,
    win_rate,
)


def test_a_hand_computed_case() -> None:
    result = estimate([[1.0, 3.0], [5.0, 7.0], [6.0, 8.0]])
    assert result.mean == 5.0
    assert result.n == 6
    # deviations −4 −2 0 2 1 3: squares sum to 34, variance 34/5, over 6 values
    assert result.se == pytest.approx(math.sqrt(34 / 5 / 6))
    # prompt means 2, 6, 7 about 5: squares sum to 14, variance 14/2, over 3 prompts
    assert result.se_by_prompt == pytest.approx(math.sqrt(14 / 2 / 3))


def test_pictures_of_one_prompt_that_agree_are_no_more_evidence_than_one_of_them() -> None:
    values = np.random.default_rng(0).standard_normal((20, 1))
    repeated = estimate(np.repeat(values, 50, axis=1))
    assert repeated.se_by_prompt == pytest.approx(estimate(values).se)
    assert repeated.se < repeated.se_by_prompt / 5  # what pretending they were independent would claim


def test_one_cluster_has_no_clustered_error_and_json_says_null() -> None:
    result = estimate([[1.0, 2.0]])
    assert math.isnan(result.se_by_prompt)
    assert result.as_dict() == {"mean": 1.5, "se": 0.5, "n": 2, "se_by_prompt": None}


def test_float32_scores_are_averaged_in_float64() -> None:
    values = np.full((1, 10**6), 0.1, np.float32)
    assert estimate(values).mean == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_students_interval_by_hand() -> None:
    found = mean_interval([1.0, 2.0, 6.0])
    # deviations −2 −1 3: variance 7, over 3 values; the 97.5 % point of t with 2 degrees of freedom is 4.3027
    margin = 4.302652729911275 * math.sqrt(7 / 3)
    assert (found.mean, found.low, found.high) == pytest.approx((3.0, 3 - margin, 3 + margin))
    assert mean_interval([1.0]).as_dict() == {"mean": 1.0, "low": None, "high": None}


def test_prompts_are_the_sample_and_of_one_prompt_its_pictures() -> None:
    assert clustered_interval([[1.0, 3.0], [5.0, 7.0], [6.0, 8.0]]) == mean_interval([2.0, 6.0, 7.0])
    assert clustered_interval([[1.0, 2.0, 6.0]]) == mean_interval([1.0, 2.0, 6.0])


def test_the_interval_covers_the_truth_as_often_as_it_says_where_pictures_of_a_prompt_agree() -> None:
    draws, covered = np.random.default_rng(0), 0
    for _ in range(500):
        values = draws.standard_normal((8, 1)) + 0.5 * draws.standard_normal((8, 6))
        found = clustered_interval(values)
        covered += found.low < 0 < found.high
    assert covered / 500 == pytest.approx(0.95, abs=0.03)


def test_a_tie_is_half_a_win() -> None:
    assert win_rate([[1.0, 2.0], [3.0, 4.0]], [[0.0, 2.0], [5.0, 6.0]]).mean == (1 + 0.5) / 4


def test_the_interval_of_wins_is_the_exact_one_where_pairs_are_independent() -> None:
    # 7 of 10 prompts won, one picture each: Clopper and Pearson's 0.348 to 0.933, or a little wider
    found = win_rate([[1.0]] * 7 + [[-1.0]] * 3, [[0.0]] * 10)
    assert found.mean == 0.7
    assert 0.30 < found.low <= 0.348
    assert 0.933 <= found.high < 0.96


def test_pictures_that_agree_within_prompts_are_no_more_wins_than_one_of_them() -> None:
    ours = np.array([[1.0]] * 7 + [[-1.0]] * 3)
    one, many = win_rate(ours, 0 * ours), win_rate(np.repeat(ours, 40, axis=1), np.zeros((10, 40)))
    assert many.low < one.low + 0.03
    assert many.high > one.high - 0.03


def test_winning_everywhere_is_not_certainty() -> None:
    found = win_rate(np.ones((6, 5)), np.zeros((6, 5)))
    assert (found.mean, found.high) == (1.0, 1.0)
    assert 0.3 < found.low < 0.7
    assert win_rate([[1.0]], [[0.0]]).as_dict() == {"mean": 1.0, "low": None, "high": None}


# -- scores that are missing ------------------------------------------------------------------------------

NAN = math.nan
WHOLE, HOLED = [[1.0, 3.0], [5.0, 7.0], [6.0, 8.0]], [[1.0, 3.0], [NAN, 9.0], [5.0, 7.0], [NAN, NAN], [6.0, 8.0]]


@pytest.mark.parametrize("of", [estimate, clustered_interval])
def test_a_prompt_without_all_of_its_scores_is_left_out(of: Any) -> None:
    assert of(HOLED) == of(WHOLE)


def test_a_mean_is_of_the_values_that_are_there() -> None:
    assert mean_interval([1.0, NAN, 3.0]) == mean_interval([1.0, 3.0])
    assert known_rows([1.0, NAN, 3.0]).tolist() == [1.0, 3.0]


def test_a_win_needs_both_scores() -> None:
    ours = [[2.0, 1.0], [NAN, 9.0], [0.0, 3.0], [4.0, 5.0], [6.0, 7.0]]
    theirs = [[1.0, 1.0], [0.0, 0.0], [0.0, 5.0], [NAN, NAN], [5.0, 8.0]]
    both = [0, 2, 4]
    assert win_rate(ours, theirs) == win_rate([ours[i] for i in both], [theirs[i] for i in both])


@pytest.mark.parametrize("nothing", [[[NAN, NAN], [NAN, 1.0]], np.empty((0, 2))], ids=["NaN", "empty"])
def test_of_no_score_there_is_no_figure(nothing: Any) -> None:
    assert estimate(nothing).as_dict() == {"mean": None, "se": None, "n": 0, "se_by_prompt": None}
    for interval in (clustered_interval(nothing), win_rate(nothing, nothing), mean_interval(np.ravel(nothing)[:0])):
        assert interval.as_dict() == {"mean": None, "low": None, "high": None}


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1.0] * 5, 2 / 32),
        ([-1.0] * 5, 2 / 32),
        ([1, 2, 3, -1], 10 / 16),  # 0 or 1 of 4, and as far on the other side: 2 · (1 + 4) / 16
        ([1, 2, 3, -1, 0, 0], 10 / 16),  # ties say nothing
        ([1, 2, 3, -1, math.nan], 10 / 16),
        ([1, -1], 1.0),
        ([0.0], 1.0),
        ([], 1.0),
    ],
)
def test_the_sign_test_counted_by_hand(differences: list[float], p: float) -> None:
    assert sign_test(differences) == pytest.approx(p)


@pytest.mark.parametrize(  # the published sample sizes of the paired t test, 80 % power at 5 % two-sided (G*Power 3)
    ("effect", "pairs"), [(0.2, 199), (0.3, 90), (0.5, 34), (0.6, 24), (0.8, 15), (1.0, 10), (1.5, 6)]
)
def test_pairs_needed_are_the_published_numbers(effect: float, pairs: int) -> None:
    for sign in (1, -1):
        assert pairs_needed(sign * (np.array([-1.0, 1.0]) / math.sqrt(2) + effect)) == pairs


def test_pairs_needed_give_the_power_that_they_promise() -> None:
    draws, differences = np.random.default_rng(0), np.array([0.4, 1.9, 1.3, -0.1, 0.6])
    effect, needed = differences.mean() / differences.std(ddof=1), pairs_needed(differences)
    assert needed is not None
    for pairs, enough in ((needed - 1, False), (needed, True)):
        values = draws.standard_normal((40_000, pairs)) + effect
        t = values.mean(axis=1) / values.std(axis=1, ddof=1) * math.sqrt(pairs)
        one = mean_interval(values[0])
        margin = (one.high - one.mean) / values[0].std(ddof=1) * math.sqrt(pairs)
        assert (np.mean(np.abs(t) > margin) >= 0.8) == enough


def test_pairs_needed_where_no_number_would_do_and_where_two_do() -> None:
    assert pairs_needed([1.0]) is None
    assert pairs_needed([]) is None
    assert pairs_needed([1.0, -1.0]) is None  # no difference at all
    assert pairs_needed(np.array([-1.0, 1.0]) + 1e-3) is None
    assert pairs_needed([2.0, 2.0, 2.0]) == 2
    assert pairs_needed(np.array([-1.0, 1.0]) + 1e6) == 2
