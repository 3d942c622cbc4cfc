"""Looking after every pair: the error rate that is kept, and what the bounds cost in power."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special

from raydense.core.sequential import ERROR, bounds
from raydense.core.statistics import mean_interval

PATHS = 20_000


def decided(first: int, most: int, effect: float, seed: int) -> tuple[float, float]:
    """Share of sweeps that are decided, and the mean number of pairs they take: other draws than the bounds' own."""
    values = np.random.default_rng(seed).standard_normal((PATHS, most)) + effect
    pairs = np.arange(1, most + 1)
    total, squares = values.cumsum(axis=1), (values**2).cumsum(axis=1)
    looks = slice(first - 1, None)
    n, total, squares = pairs[looks], total[:, looks], squares[:, looks]
    beyond = np.abs(total) / np.sqrt(n * (squares - total**2 / n) / (n - 1)) >= np.array(bounds(first, most))
    found = beyond.any(axis=1)
    return float(found.mean()), float(np.where(found, n[beyond.argmax(axis=1)], most).mean())


@pytest.mark.parametrize(("first", "most"), [(3, 12), (5, 20), (5, 30), (10, 11), (6, 6)])
def test_where_nothing_differs_at_most_one_sweep_in_twenty_is_decided(first: int, most: int) -> None:
    share, _ = decided(first, most, 0.0, seed=most)
    assert share <= ERROR + 3 * math.sqrt(ERROR * (1 - ERROR) / PATHS)
    assert share >= 0.044  # and no power is given away


def test_a_plain_t_interval_looked_at_after_every_pair_errs_three_times_as_often() -> None:
    """Why there is a rule at all."""
    values = np.random.default_rng(0).standard_normal((PATHS, 30))
    n = np.arange(5, 31)
    total, squares = values.cumsum(axis=1)[:, 4:], (values**2).cumsum(axis=1)[:, 4:]
    t = np.abs(total) / np.sqrt(n * (squares - total**2 / n) / (n - 1))
    assert (t >= special.stdtrit(n - 1, 0.975)).any(axis=1).mean() > 3 * ERROR


@pytest.mark.parametrize(
    ("effect", "power", "pairs"), [(0.6, 0.795, 20.3), (0.8, 0.965, 15.4), (1.0, 0.998, 12.0), (1.5, 1.0, 8.0)]
)
def test_what_the_guide_says_of_thirty_seeds(effect: float, power: float, pairs: float) -> None:
    assert decided(5, 30, effect, seed=7) == (pytest.approx(power, abs=0.01), pytest.approx(pairs, abs=0.2))


def test_one_look_is_a_t_test_but_for_the_reserve() -> None:
    (bound,) = bounds(8, 8)
    assert bound == pytest.approx(special.stdtrit(7, 1 - 0.049 / 2), rel=0.01)


def test_bounds_are_the_same_each_time_and_looks_begin_with_two_pairs() -> None:
    assert bounds(5, 9) == bounds(5, 9)
    for first, most in ((1, 5), (6, 5)):
        with pytest.raises(ValueError, match="looks begin with two pairs"):
            bounds(first, most)


def test_an_interval_by_hand() -> None:
    found = mean_interval([1.0, 2.0, 6.0], 4.0)  # variance 7, over 3 values
    margin = 4 * math.sqrt(7 / 3)
    assert (found.mean, found.low, found.high) == pytest.approx((3.0, 3 - margin, 3 + margin))
    assert found.side is None
    assert mean_interval([1.0, 2.0, 6.0], 1.9).side == "higher"
    assert mean_interval([-1.0, -2.0, -6.0], 1.9).side == "lower"
    assert mean_interval([0.0, 0.0], 5.0).side is None
