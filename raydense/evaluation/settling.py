"""Where along a chain the judge's opinion is made."""

from __future__ import annotations

import numpy as np

from raydense.core.types import FloatArray

TOLERANCE = 0.1
RULE = (
    f"settled: from this step on, x̂0's score stays within {TOLERANCE:.0%} of the chain's range of scores from that of "
    "the finished picture"
)


def settled_at(scores: FloatArray) -> int:
    """The first step from which on the score of x̂0 stays near that of the finished picture, by `RULE`.

    Args: scores: [T + 1], of x̂0 at each step, and of the finished picture.
    Returns: T where no x̂0 stays near it.
    """
    values = scores.astype(np.float64)
    away = np.flatnonzero(np.abs(values - values[-1]) > TOLERANCE * np.ptp(values))
    return int(away[-1]) + 1 if len(away) else 0
