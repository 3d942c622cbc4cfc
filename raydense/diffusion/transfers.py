"""Copies between the CPU and a GPU that make neither wait for the other: from and to pinned memory, queued."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor there; a copy to a GPU is queued in the order of its work, and nothing waits for it."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def to_cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors here, of one device; a GPU is waited for once, when all copies are queued."""
    if not tensors or tensors[0].device.type != "cuda":
        return [tensor.cpu() for tensor in tensors]
    here = [torch.empty_like(tensor, device="cpu", pin_memory=True) for tensor in tensors]
    for own, tensor in zip(here, tensors, strict=True):
        own.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensors[0].device).synchronize()
    return here
