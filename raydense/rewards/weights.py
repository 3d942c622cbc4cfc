"""Published checkpoints: read without running what is pickled in them, and loaded with nothing left over."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

from raydense.core.messages import first_few


def read_state_dict(path: Path, *, key: str | None = None) -> dict[str, torch.Tensor]:
    """The tensors by name in a `torch.save` file, on the CPU; memory-mapped where the format allows.

    Args:
        key: of the file's mapping that holds them; None: the file is that mapping.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such checkpoint; one line naming the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: cannot be read as a checkpoint of tensors alone ({reason})") from None
    tensors = content.get(key) if key is not None and isinstance(content, Mapping) else content
    if not isinstance(tensors, Mapping) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        what = f"under {key!r}" if key is not None else "at its top"
        held = f"keys {first_few(list(map(str, content)))}" if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"{path}: holds no tensors by name {what}, but {held}")
    return dict(tensors)


def load_strictly(module: torch.nn.Module, state: Mapping[str, torch.Tensor], source: str) -> None:
    """Copies `state` into the module: every tensor of either side must have its counterpart.

    Raises: ValueError in one line, naming the source and the first keys that do not fit.
    """
    own = module.state_dict()
    problems = [f"{name} is missing" for name in own if name not in state]
    problems += [f"{name} is unknown" for name in state if name not in own]
    problems += [
        f"{name} has shape {list(state[name].shape)}, expected {list(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    if problems:
        raise ValueError(f"{source}: does not fit the model: {first_few(problems)}")
    module.load_state_dict(state)
