"""Whether tensors hold numbers alone, found in one pass and without waiting for a device."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def all_finite(tensor: Tensor) -> Tensor:
    """A tensor of floats → bool [], on its device: no NaN and no infinity is in it."""
    return torch.isfinite(torch.stack(torch.aminmax(tensor))).all()  # a NaN is its tensor's minimum and maximum


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold a NaN or an infinity."""
    flags = {name: all_finite(t.detach()) for name, t in tensors.items() if t.is_floating_point() and t.numel()}
    return [name for name, flag in flags.items() if not flag]
