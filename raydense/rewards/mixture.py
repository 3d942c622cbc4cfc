"""A weighted sum of scorers, which are each logged beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from raydense.core.interfaces import Scorer
from raydense.core.types import FloatArray, Scales


class MixtureScorer:
    """Σ weight · score over its components.

    Args: weights: by component name; one for each component.
    """

    def __init__(self, name: str, components: Sequence[Scorer], weights: Mapping[str, float]) -> None:
        self.name, self.components, self._weights = name, tuple(components), dict(weights)

    def score(self, images: NDArray[np.uint8], prompts: Sequence[str]) -> FloatArray:
        """images uint8 [N, h, w, 3] and N prompts → float32 [N], of the components' own scales."""
        return self.combine({component.name: component.score(images, prompts) for component in self.components})

    def combine(self, scores: Mapping[str, FloatArray], scales: Scales = ()) -> FloatArray:
        """The sum of its components' scores, which were computed already, each float32 [N]; others are ignored."""
        return weighted_sum(scores, self._weights, scales)


def weighted_sum(scores: Mapping[str, FloatArray], weights: Mapping[str, float], scales: Scales = ()) -> FloatArray:
    """Σ weight · (score − mean) / std over the scorers that have a weight: float32, of the shape of one's scores.

    Args:
        scales: (name, mean, std) of scorers; one without an entry keeps its own scale, and one whose scores were all
            equal (std 0) is not divided.
    """
    known = {name: (mean, std or 1.0) for name, mean, std in scales}
    total = np.zeros(np.shape(next(iter(scores.values()))))
    for name, weight in weights.items():
        mean, std = known.get(name, (0.0, 1.0))
        total += weight * (np.asarray(scores[name], dtype=np.float64) - mean) / std
    return total.astype(np.float32)
