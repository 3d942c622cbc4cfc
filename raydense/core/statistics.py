"""Means with standard errors and 95 % intervals, plain and clustered by prompt; and what pairs of runs can tell.

A score that a monitor did not give is NaN, and its row, a prompt's, is left out; of none, everything is NaN.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special  # not `stats`, which takes most of a second to load

CONFIDENCE = 0.95  # of every interval
POWER = 0.8  # which `pairs_needed` asks for
MOST_PAIRS = 100_000


@dataclass(frozen=True)
class Estimate:
    """A mean, its standard error over the n values, and the one clustered by prompt (NaN for a single cluster)."""

    mean: float
    se: float
    n: int
    se_by_prompt: float

    def as_dict(self) -> dict[str, float | int | None]:
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(self).items()}


def estimate(values: ArrayLike) -> Estimate:
    """Of values [P, m]: P prompts (the clusters), m pictures of each."""
    table = known_rows(values)
    return Estimate(_mean(table), _standard_error(table.ravel()), table.size, _standard_error(table.mean(axis=1)))


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its 95 % confidence interval (NaN where there is one value alone)."""

    mean: float
    low: float
    high: float

    @property
    def side(self) -> str | None:
        """Of 0, which lies outside; None where it may lie inside."""
        return "higher" if self.low > 0 else "lower" if self.high < 0 else None

    def as_dict(self) -> dict[str, float | None]:
        return {k: None if math.isnan(v) else v for k, v in asdict(self).items()}


def mean_interval(values: ArrayLike, bound: float | None = None) -> Interval:
    """Of the mean of independent values [n]: Student's, or with another bound of |t| in the place of his quantile."""
    flat = known_rows(values)
    mean, margin = _mean(flat), (_quantile(len(flat)) if bound is None else bound) * _standard_error(flat)
    return Interval(mean, mean - margin, mean + margin)


def clustered_interval(values: ArrayLike) -> Interval:
    """Of values [P, m]: P prompts, m pictures of each. The prompts are the sample; of one prompt, its pictures are."""
    return mean_interval(_clusters(known_rows(values)))


def is_below_zero(values: ArrayLike, sigmas: float) -> bool:
    """Whether the mean is below 0, by Student's one-sided test at the normal distribution's level of so many sigmas.

    Args: values [P, m]: clustered as above.
    """
    flat = _clusters(known_rows(values))
    error = _standard_error(flat)
    if math.isnan(error) or not _mean(flat) < 0:
        return False
    return error == 0 or is_far_below(_mean(flat) / error, len(flat) - 1, sigmas)


def is_far_below(t: float, degrees_of_freedom: float, sigmas: float) -> bool:
    """Whether Student's t is as improbable from below as a normal value of -sigmas."""
    return bool(special.stdtr(degrees_of_freedom, t) < special.ndtr(-sigmas))


def win_rate(ours: ArrayLike, theirs: ArrayLike) -> Interval:
    """Share of pictures with the higher score, pair by pair ([P, m] both); a tie is half a win.

    The interval is Korn and Graubard's (1998): Clopper and Pearson's exact one, for as many independent pairs as would
    give the variance found between prompts. So it stays within 0 and 1, and is no point where every pair is won.
    """
    first, second = np.asarray(ours), np.asarray(theirs)
    missing = np.isnan(first) | np.isnan(second)
    wins = known_rows(np.where(missing, np.nan, np.where(first == second, 0.5, first > second)))
    clusters, share, pairs = _clusters(wins), _mean(wins), wins.size
    if len(clusters) < 2:
        return Interval(share, math.nan, math.nan)
    variance = _standard_error(clusters) ** 2
    if 0 < share < 1:
        effective = min(pairs, share * (1 - share) / variance) if variance > 0 else float(pairs)
    else:
        effective = float(len(clusters))
    effective *= (_quantile(pairs) / _quantile(len(clusters))) ** 2
    tail, won, lost = (1 - CONFIDENCE) / 2, share * effective, (1 - share) * effective
    low = float(special.betaincinv(won, lost + 1, tail)) if won > 0 else 0.0
    high = float(special.betaincinv(won + 1, lost, 1 - tail)) if lost > 0 else 1.0
    return Interval(share, low, high)


def sign_test(differences: ArrayLike) -> float:
    """The exact two-sided p of as many differences [n] above 0, were either sign as likely; those of 0 are left out."""
    flat = known_rows(differences)
    above, below = int((flat > 0).sum()), int((flat < 0).sum())
    return min(1.0, 2 * float(special.bdtr(min(above, below), above + below, 0.5))) if above + below else 1.0


def pairs_needed(differences: ArrayLike) -> int | None:
    """So many pairs show a difference as large as the mean of these [n], with their spread, in 80 % of cases.

    By the two-sided paired t test at 5 %, from the noncentral t distribution. None where no number of pairs up to
    100,000 does, and of fewer than two.
    """
    flat = known_rows(differences)
    if len(flat) < 2 or flat.mean() == 0:
        return None
    spread = float(flat.std(ddof=1))
    effect = abs(_mean(flat)) / spread if spread > 0 else math.inf
    low, high = 1, 2  # too few; perhaps enough
    while _power(effect, high) < POWER:
        low, high = high, 2 * high
        if low >= MOST_PAIRS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _power(effect, middle) >= POWER else (middle, high)
    return high


def _power(effect: float, pairs: int) -> float:
    """Of the two-sided paired t test at 5 %. Args: effect: the mean difference in standard deviations."""
    shift, bound = effect * math.sqrt(pairs), _quantile(pairs)
    if shift > 2 * bound + 10:
        return 1.0  # where the noncentral distribution itself is out of scipy's reach
    return float(special.nctdtr(pairs - 1, -shift, -bound) + special.nctdtr(pairs - 1, shift, -bound))


def known_rows(values: ArrayLike) -> NDArray[np.float64]:
    """Those of [P] or [P, m] in which no value is NaN."""
    table = np.asarray(values, dtype=np.float64)
    missing = np.isnan(table)
    return table[~(missing if table.ndim == 1 else missing.any(axis=1))]


def _clusters(table: NDArray[np.float64]) -> NDArray[np.float64]:
    means: NDArray[np.float64] = table.ravel() if len(table) == 1 else table.mean(axis=1)
    return means


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else math.nan


def _quantile(count: int) -> float:
    """Of Student's distribution for the mean of `count` values."""
    return float(special.stdtrit(count - 1, (1 + CONFIDENCE) / 2)) if count > 1 else math.nan


def _standard_error(values: np.ndarray) -> float:
    if len(values) < 2:
        return math.nan
    return float(values.std(ddof=1) / math.sqrt(len(values)))
