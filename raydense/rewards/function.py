"""A user's own scorer: `module:function`, called with (images, prompts) in the sampler's process.

What it may not do there is in `shared_state`. What it prints goes to stderr: stdout is the run's own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raydense.core.interfaces import SharedStateChanged
from raydense.core.messages import one_line
from raydense.core.types import FloatArray
from raydense.rewards.shared_state import keep_shared_state


class FunctionScorer:
    """Wraps `module:function`: (images uint8 [N, h, w, 3], prompts) → N numbers, as a list, an array or a tensor.

    Raises: ValueError if the target cannot be imported or is not callable, or its import changes shared state.
    """

    def __init__(self, name: str, target: str) -> None:
        self.name = name
        module_name, _, attribute = target.partition(":")
        try:
            with redirect_stdout(sys.stderr):
                module = keep_shared_state(f"its import of {module_name}", lambda: _import(module_name))
            self._function = getattr(module, attribute)
        except SharedStateChanged as error:
            raise ValueError(f"scorer {name}: target={target}: {error}") from None
        except (Exception, SystemExit) as error:  # whatever a user's module raises
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise ValueError(f"scorer {name}: target={target} cannot be imported ({reason})") from None
        if not callable(self._function):
            raise ValueError(f"scorer {name}: target={target} is not callable")

    def score(self, images: NDArray[np.uint8], prompts: Sequence[str]) -> FloatArray:
        """images uint8 [N, h, w, 3] and N prompts → float32 [N].

        Raises: SharedStateChanged; ValueError for what is not N numbers; whatever the function raises.
        """
        with redirect_stdout(sys.stderr):
            values = keep_shared_state(f"scorer {self.name}", lambda: _as_array(self._function(images, prompts)))
        if values.dtype.kind not in "biuf":
            raise ValueError(f"it gave {values.dtype} for {len(images)} images; expected one number each")
        if values.shape != (len(images),):
            raise ValueError(f"it gave shape {values.shape} for {len(images)} images; expected one number each")
        return values.astype(np.float32)  # a copy: the function may use its array again


def _import(name: str) -> ModuleType:
    """The current directory counts too, where Python does not put it on its path, as for an installed command."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        here = os.getcwd()
        if error.name != name.partition(".")[0] or here in sys.path:
            raise
        sys.path.append(here)  # for good: what it imports when it is called may lie beside it
        return import_module(name)


def _as_array(values: Any) -> NDArray[Any]:
    if isinstance(values, torch.Tensor):
        return _from_torch(values)
    if isinstance(values, list | tuple):
        values = [_from_torch(value) if isinstance(value, torch.Tensor) else value for value in values]
    return np.asarray(values)


def _from_torch(tensor: torch.Tensor) -> NDArray[Any]:
    """Of any device and precision, with a graph or without; bfloat16 is unknown to numpy."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
