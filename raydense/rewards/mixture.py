"""A weighted sum of scorers, which are each logged beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from raydense.core.interfaces import Scorer
from raydense.core.types import FloatArray


class MixtureScorer:
    """Σ weight · score over its components, on their own scales.

    Args: weights: by component name; one for each component.
    """

    def __init__(self, name: str, components: Sequence[Scorer], weights: Mapping[str, float]) -> None:
        self.name, self.components, self._weights = name, tuple(components), dict(weights)

    def score(self, images: NDArray[np.uint8], prompts: Sequence[str]) -> FloatArray:
        """images uint8 [N, h, w, 3] and N prompts → float32 [N]."""
        return self.combine({component.name: component.score(images, prompts) for component in self.components})

    def combine(self, scores: Mapping[str, FloatArray]) -> FloatArray:
        """The sum of its components' scores, which were computed already, each float32 [N]; others are ignored."""
        weighted = [np.float32(weight) * scores[name] for name, weight in self._weights.items()]
        total: FloatArray = np.sum(weighted, axis=0, dtype=np.float32)
        return total
