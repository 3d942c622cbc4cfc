"""A frozen U-Net under a LoRA keeps and does less for the backward pass; its results have the same bits.

PyTorch's convolution keeps its input for a weight gradient that a frozen layer never needs, and a gated GELU keeps both
its product's factors beside what they are computed from. peft's linear layer passes over its output twice and over its
gradients twice to add the LoRA's share.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from peft.tuners import lora
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input


def keep_less(unet: nn.Module) -> None:
    """Changes frozen convolutions, gated GELUs and adapted linear layers in place; call it once its layers are frozen.

    A layer keeps its parameters, hooks and adapters: only its `__class__` becomes that of a subclass with another
    `forward`, of the very class that it had and of no other. A new module in its place would leave behind whatever
    holds the old one.
    """
    for module in unet.modules():
        if type(module) is nn.Conv2d and module.padding_mode == "zeros" and not module.weight.requires_grad:
            module.__class__ = FrozenConv2d
        elif type(module) is GEGLU:
            module.__class__ = LeanGEGLU
        elif type(module) is lora.Linear and _is_plain(module):
            module.__class__ = LeanLora


def _is_plain(layer: lora.Linear) -> bool:
    """Whether it is W x + b + s B A x, with W and b frozen."""
    base, dropouts = layer.get_base_layer(), layer.lora_dropout.values()
    frozen = type(base) is nn.Linear and not any(p.requires_grad for p in base.parameters())
    usual = not layer.lora_variant and not any(layer.lora_bias.values())
    return frozen and usual and [type(dropout) for dropout in dropouts] == [nn.Identity]


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


class LeanLora(lora.Linear):  # type: ignore[misc]
    """W x + b + s B A x, of which A and B alone have gradients."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or not self._learns(x):
            return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return]
        base, ((adapter, scaling),) = self.base_layer, self.scaling.items()
        down, up = self.lora_A[adapter].weight, self.lora_B[adapter].weight
        result: Tensor = _FrozenLora.apply(x, base.weight, base.bias, down, up, scaling)  # type: ignore[no-untyped-call]
        return result

    def _learns(self, x: Tensor) -> bool:
        """Whether its one adapter is on, has gradients, and computes in the dtype of x."""
        device = x.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            return False
        if self.disable_adapters or self.merged or list(self.scaling) != list(self.active_adapters):
            return False
        if not torch.is_grad_enabled() or x.ndim < 2:
            return False
        tensors = [half[adapter].weight for half in (self.lora_A, self.lora_B) for adapter in self.scaling]
        return all(t.requires_grad and t.dtype == x.dtype for t in tensors) and self.base_layer.weight.dtype == x.dtype


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


class _FrozenLora(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scaling: float
    ) -> Tensor:
        low = F.linear(x, down)
        update = F.linear(low, up)
        context.save_for_backward(x, weight, down, up, low)
        context.scaling = scaling
        return F.linear(x, weight, bias) + (update if scaling == 1 else update.mul_(scaling))

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: Any) -> Any:
        x, weight, down, up, low = context.saved_tensors
        x_rows, low_rows, rows = (tensor.flatten(0, -2) for tensor in (x, low, *gradients))
        low_gradient = rows @ up * context.scaling
        x_gradient = None
        if context.needs_input_grad[0]:
            x_gradient = torch.addmm(low_gradient @ down, rows, weight).view_as(x)
        return x_gradient, None, None, low_gradient.t() @ x_rows, rows.t() @ low_rows * context.scaling, None
