"""Means with standard errors and 95 % intervals: plain, and clustered by prompt."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

CONFIDENCE = 0.95  # of every interval


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
    table = np.asarray(values, dtype=np.float64)
    by_prompt = table.mean(axis=1)
    return Estimate(float(table.mean()), _standard_error(table.ravel()), table.size, _standard_error(by_prompt))


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its 95 % confidence interval (NaN where there is one value alone)."""

    mean: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float | None]:
        return {k: None if math.isnan(v) else v for k, v in asdict(self).items()}


def mean_interval(values: ArrayLike) -> Interval:
    """Student's interval of the mean of independent values [n]."""
    flat = np.asarray(values, dtype=np.float64)
    mean, margin = float(flat.mean()), _quantile(len(flat)) * _standard_error(flat)
    return Interval(mean, mean - margin, mean + margin)


def clustered_interval(values: ArrayLike) -> Interval:
    """Of values [P, m]: P prompts, m pictures of each. The prompts are the sample; of one prompt, its pictures are."""
    return mean_interval(_clusters(np.asarray(values, dtype=np.float64)))


def win_rate(ours: ArrayLike, theirs: ArrayLike) -> Interval:
    """Share of pictures with the higher score, pair by pair ([P, m] both); a tie is half a win.

    The interval is Korn and Graubard's (1998): Clopper and Pearson's exact one, for as many independent pairs as would
    give the variance found between prompts. So it stays within 0 and 1, and is no point where every pair is won.
    """
    first, second = np.asarray(ours), np.asarray(theirs)
    wins = np.where(first == second, 0.5, first > second)
    clusters, share, pairs = _clusters(wins), float(wins.mean()), wins.size
    if len(clusters) < 2:
        return Interval(share, math.nan, math.nan)
    variance = _standard_error(clusters) ** 2
    if 0 < share < 1:
        effective = min(pairs, share * (1 - share) / variance) if variance > 0 else float(pairs)
    else:
        effective = float(len(clusters))
    effective *= (_quantile(pairs) / _quantile(len(clusters))) ** 2
    tail, won, lost = (1 - CONFIDENCE) / 2, share * effective, (1 - share) * effective
    low = float(stats.beta.ppf(tail, won, lost + 1)) if won > 0 else 0.0
    high = float(stats.beta.ppf(1 - tail, won + 1, lost)) if lost > 0 else 1.0
    return Interval(share, low, high)


def _clusters(table: np.ndarray) -> np.ndarray:
    means: np.ndarray = table.mean(axis=1) if len(table) > 1 else table[0]
    return means


def _quantile(count: int) -> float:
    """Of Student's distribution for the mean of `count` values."""
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) if count > 1 else math.nan


def _standard_error(values: np.ndarray) -> float:
    if len(values) < 2:
        return math.nan
    return float(values.std(ddof=1) / math.sqrt(len(values)))
