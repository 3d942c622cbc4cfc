"""Means and standard errors against hand computations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from raydense.core.statistics import estimate


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
