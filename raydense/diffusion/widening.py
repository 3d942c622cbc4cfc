"""A network of 16 bits in float32 for a few calls, a layer at a time: a whole copy would be twice as large as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def widened(network: nn.Module, lora: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside this context each module computes with float32 copies of its own tensors, which live as long as its call.

    Args: lora: float32 tensors that stand in for the network's of these names all the time, since other layers ask for
        their dtype. Nothing has a gradient.
    """
    named = dict(network.named_parameters())
    with torch.no_grad(), ExitStack() as undone:
        for name, tensor in lora.items():
            undone.callback(setattr, named[name], "data", named[name].data)
            named[name].data = tensor.data
        for module in network.modules():
            own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            if narrow := [tensor for tensor in own if tensor.is_floating_point() and tensor.dtype.itemsize < 4]:
                for handle in _widen(module, narrow):
                    undone.callback(handle.remove)
        yield


def _widen(module: nn.Module, tensors: list[Tensor]) -> tuple[Any, Any]:
    """Hooks around its calls."""
    kept: list[Tensor] = []

    def before(*_: Any) -> None:
        kept[:] = [tensor.data for tensor in tensors]
        for tensor in tensors:
            tensor.data = tensor.data.float()

    def after(*_: Any) -> None:
        for tensor, data in zip(tensors, kept, strict=True):
            tensor.data = data
        kept.clear()

    return module.register_forward_pre_hook(before), module.register_forward_hook(after, always_call=True)
