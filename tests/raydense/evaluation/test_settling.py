"""The step from which on the judge's score of x̂0 stays near that of the finished picture."""

from __future__ import annotations

import numpy as np
import pytest

from raydense.evaluation.settling import settled_at


@pytest.mark.parametrize(
    ("scores", "step"),
    [
        ([0.0, 0.5, 1.0, 1.0, 1.0], 2),
        ([0.0, 0.5, 0.91, 1.0, 1.0], 2),  # within a tenth of the range
        ([0.0, 0.5, 0.89, 1.0, 1.0], 3),
        ([0.0, 1.0, 0.2, 0.95, 1.0], 3),  # what it reaches and leaves again counts for nothing
        ([2.0, 1.0, 0.05, 0.1, 0.0], 2),  # a score may fall along the chain
        ([0.0, 0.9, 0.1, 0.2, 1.0], 4),  # T: the finished picture alone
        ([0.3, 0.3, 0.3, 0.3, 0.3], 0),
        ([-20.0, -15.0, -10.5, -10.0, -10.0], 2),  # whatever scale and zero a judge has
        ([0.5, 0.7], 1),
    ],
)
def test_it_settles_where_it_no_longer_leaves(scores: list[float], step: int) -> None:
    assert settled_at(np.float32(scores)) == step
