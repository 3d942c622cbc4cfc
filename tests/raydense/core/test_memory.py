"""PyTorch's paragraph becomes a line."""

from __future__ import annotations

import pytest
import torch

from raydense.core.memory import DeviceMemoryError, memory_advice

TORCHS = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.25 GiB is free."
    " Including non-PyTorch memory, this process has 77.85 GiB memory in use."
)


def test_what_was_asked_for_and_what_to_lower() -> None:
    with pytest.raises(DeviceMemoryError) as caught, memory_advice("lower x.y"):
        raise torch.OutOfMemoryError(TORCHS)
    assert str(caught.value) == "CUDA out of memory. Tried to allocate 2.00 GiB; lower x.y"


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match=r"^something else$"), memory_advice("lower x.y"):
        raise RuntimeError("something else")
