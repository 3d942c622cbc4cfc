"""Published checkpoints: read without running what is pickled in them, and loaded with nothing left over."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from raydense.config import ConfigError
from raydense.core.finite import not_finite
from raydense.core.messages import first_few
from raydense.files.weight_files import FileFault, misfit, read_checkpoint


def read_state_dict(path: Path, source: str, *, key: str | None = None, device: str = "cpu") -> dict[str, torch.Tensor]:
    """The tensors by name in a `torch.save` file.

    Args:
        source: setting and path, which begin every error.
        key: of the file's mapping that holds them; None: the file is that mapping.
        device: `meta` gives their shapes alone.
    Raises: ConfigError: there is no such file, or it is no such checkpoint.
    """
    if not path.is_file():
        raise ConfigError(f"{source}: there is no such file")
    try:
        content = read_checkpoint(path, device)
    except FileFault as fault:
        raise ConfigError(f"{source}: {fault}") from None
    tensors = content.get(key) if key is not None and isinstance(content, Mapping) else content
    if not isinstance(tensors, Mapping) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        what = f"under {key!r}" if key is not None else "at its top"
        held = f"keys {first_few(list(map(str, content)))}" if isinstance(content, Mapping) else type(content).__name__
        raise ConfigError(f"{source}: holds no tensors by name {what}, but {held}")
    return dict(tensors)


def check_fit(module: torch.nn.Module, state: Mapping[str, torch.Tensor], source: str) -> None:
    """Every tensor of either side must have its counterpart. Raises: ConfigError naming the source and the tensors."""
    found, expected = ({n: t.shape for n, t in side.items()} for side in (state, module.state_dict()))
    if problems := misfit(found, expected):
        raise ConfigError(f"{source}: does not fit the model; {problems}")


def load_strictly(module: torch.nn.Module, state: Mapping[str, torch.Tensor], source: str) -> None:
    """Copies `state` into the module. Raises: ConfigError as of `check_fit`, or for values that are not finite."""
    check_fit(module, state, source)
    if names := not_finite(state):
        raise ConfigError(f"{source}: has NaN or infinity in {first_few(names)}; download it again")
    module.load_state_dict(state)
