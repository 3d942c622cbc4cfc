"""A device whose memory runs out says what to lower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class DeviceMemoryError(RuntimeError):
    """One line: what was asked for, and which settings ask for less."""


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Raises: DeviceMemoryError instead of PyTorch's own paragraph. Args: advice: such as "lower x.y"."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        happened = ". ".join(str(error).split(". ")[:2])  # "CUDA out of memory. Tried to allocate 2.00 GiB"
        raise DeviceMemoryError(f"{happened}; {advice}") from error
