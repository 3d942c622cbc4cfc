"""Means with standard errors: plain, and clustered by prompt."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike


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


def _standard_error(values: np.ndarray) -> float:
    if len(values) < 2:
        return math.nan
    return float(values.std(ddof=1) / math.sqrt(len(values)))
