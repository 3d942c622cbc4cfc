"""A frozen U-Net under a LoRA keeps less for the backward pass; results and gradients have the same bits.

PyTorch's convolution keeps its input for a weight gradient that a frozen layer never needs, and a gated GELU keeps both
its product's factors beside what they are computed from.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from torch import Tensor, nn
from torch.nn.grad import conv2d_input


def keep_less(unet: nn.Module) -> None:
    """Changes the frozen convolutions and the gated GELUs of a U-Net, in place; call it once its layers are frozen.

    A layer keeps its parameters, hooks and adapters: only its `__class__` becomes that of a subclass with another
    `forward`, of the very class that it had and of no other. A new module in its place would leave behind whatever
    holds the old one.
    """
    for module in unet.modules():
        if type(module) is nn.Conv2d and module.padding_mode == "zeros" and not module.weight.requires_grad:
            module.__class__ = FrozenConv2d
        elif type(module) is GEGLU:
            module.__class__ = LeanGEGLU


class FrozenConv2d(nn.Conv2d):
    """A convolution that only passes gradients through."""

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return super().forward(x)
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        result: Tensor = _FrozenConv.apply(x, self.weight, self.bias, geometry)  # type: ignore[no-untyped-call]
        return result


class LeanGEGLU(GEGLU):  # type: ignore[misc]
    """a · GELU(b), where a and b are the halves of one projection: only the projection is kept."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = _GatedGELU.apply(self.proj(x))  # type: ignore[no-untyped-call]
        return result


class _FrozenConv(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[Any, ...]) -> Tensor:
        context.save_for_backward(weight)
        context.shape, context.dtype, context.geometry = x.shape, x.dtype, geometry
        return F.conv2d(x, weight, bias, *geometry)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> Any:
        (weight,), (gradient,) = context.saved_tensors, gradients
        weight = weight.to(gradient.dtype)  # autocast computed in another precision
        x = conv2d_input(context.shape, weight, gradient, *context.geometry)  # type: ignore[no-untyped-call]
        return x.to(context.dtype), None, None, None


class _GatedGELU(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, projected: Tensor) -> Tensor:
        context.save_for_backward(projected)
        value, gate = projected.chunk(2, dim=-1)
        return value * F.gelu(gate)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> Any:
        (projected,), (gradient,) = context.saved_tensors, gradients
        value, gate = projected.chunk(2, dim=-1)
        return torch.cat([gradient * F.gelu(gate), torch.ops.aten.gelu_backward(gradient * value, gate)], dim=-1)
