"""A user's own scorer: `module:function`, called with (images, prompts)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import numpy as np
from numpy.typing import NDArray

from raydense.core.types import FloatArray


class FunctionScorer:
    """Wraps `module:function`: (images uint8 [N, h, w, 3], prompts) → N numbers.

    Raises: ValueError if the target cannot be imported or is not callable.
    """

    def __init__(self, name: str, target: str) -> None:
        self.name = name
        module_name, _, attribute = target.partition(":")
        try:
            self._function = getattr(import_module(module_name), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"scorer {name}: target={target} cannot be imported ({error})") from None
        if not callable(self._function):
            raise ValueError(f"scorer {name}: target={target} is not callable")

    def score(self, images: NDArray[np.uint8], prompts: Sequence[str]) -> FloatArray:
        scores = np.asarray(self._function(images, prompts), dtype=np.float32)
        if scores.shape != (len(images),):
            raise ValueError(
                f"scorer {self.name} gave shape {scores.shape} for {len(images)} images; expected one score each"
            )
        return scores
