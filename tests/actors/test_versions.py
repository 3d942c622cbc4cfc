"""Which weights a unit gets: those that it names, and an average never in the place of what it is the average of."""

from __future__ import annotations

import numpy as np
import pytest

from actors.versions import LiveVersions
from raydense.core.types import PolicyWeights, averaged_version


def weights(version: int, value: float) -> PolicyWeights:
    return PolicyWeights.of(version, {"a": np.full(2, value, np.float32)})


def test_an_average_and_the_weights_of_the_same_step_live_side_by_side() -> None:
    live = LiveVersions(lambda given: given)
    plain, averaged = weights(5, 1.0), weights(averaged_version(5), 2.0)
    for given in (plain, averaged, plain):
        live.add(given)
    assert live[5] is plain
    assert live[averaged_version(5)] is averaged
    with pytest.raises(RuntimeError, match="weights version -2 is not live"):
        live[averaged_version(0)]
