"""How a network holds a LoRA whose values are float32: beside its weights, to be trained, or merged into them.

A loss needs the policy as the learner computes it; what drew the trajectories may round elsewhere (METHOD §3). So
samplers merge: their network is then as fast as one without a LoRA.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

SURVIVES = 0.99  # of an update, below which a layer computes in float32


class LiveLora(Protocol):
    """A frozen network's one adapter."""

    parameters: dict[str, nn.Parameter]  # float32

    def update(self) -> None:
        """What the network computes follows the parameters; call it when they have changed."""

    def beside(self) -> AbstractContextManager[None]:
        """Inside this context the network is one with adapted layers, and has the weights that were loaded."""


class LoraBeside:
    """As peft computes it, in the network's dtype: a narrower one has copies of the parameters.

    Their gradients are added up in the parameters, in float32.
    Args: network: with one adapter, frozen but for it.
    """

    def __init__(self, network: nn.Module) -> None:
        self._live = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.parameters: dict[str, nn.Parameter] = {}
        for name, live in self._live.items():
            self.parameters[name] = live
            if live.dtype.itemsize < 4:
                self.parameters[name] = nn.Parameter(live.detach().float())
                hook = _pass_on(self.parameters[name])
                live.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def update(self) -> None:
        for name, live in self._live.items():
            if live is not self.parameters[name]:
                live.copy_(self.parameters[name])

    def beside(self) -> AbstractContextManager[None]:
        return nullcontext()


def _pass_on(parameter: nn.Parameter) -> Callable[[Tensor], None]:
    def add(live: Tensor) -> None:
        assert live.grad is not None
        gradient, live.grad = live.grad, None
        parameter.grad = gradient.float() if parameter.grad is None else parameter.grad.add_(gradient)

    return add


class MergedLora:
    """Puts plain layers W + ΔW into the places of a network's adapted ones, which keep W and the LoRA.

    In 16 bits W + ΔW rounds, and a ΔW below half a last place of W vanishes, as early in a run: a layer that would
    keep less than `SURVIVES` of it holds its sum, and computes, in float32.

    Args: network: with one adapter of this name, frozen but for it; changed in place.
    """

    def __init__(self, network: nn.Module, adapter: str) -> None:
        self._adapter = adapter
        self.parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        for parameter in self.parameters.values():
            parameter.data = parameter.data.float()  # peft gives it the dtype of the layer below
        self._adapted: list[BaseTunerLayer] = []
        self._plain: list[nn.Linear | nn.Conv2d] = []
        self._places: list[tuple[nn.Module, str]] = []
        for name, layer in [(n, m) for n, m in network.named_modules() if isinstance(m, BaseTunerLayer)]:
            parent, _, child = name.rpartition(".")
            self._adapted.append(layer)
            self._places.append((network.get_submodule(parent), child))
            self._plain.append(_plain(layer.get_base_layer()))
        self.update()
        self._put(self._plain)

    @torch.no_grad()
    def update(self) -> None:
        sums = [self._sum(layer) for layer in self._adapted]
        bases = [layer.get_base_layer() for layer in self._adapted]
        kept = torch.stack([_kept(base.weight, weight) for base, weight in zip(bases, sums, strict=True)]).tolist()
        for base, plain, weight, share in zip(bases, self._plain, sums, kept, strict=True):
            dtype = torch.float32 if share < SURVIVES else base.weight.dtype
            plain.weight.data = weight.to(dtype)
            if base.bias is not None and plain.bias is not None:
                plain.bias.data = base.bias.to(dtype)

    @contextmanager
    def beside(self) -> Iterator[None]:
        before = [getattr(parent, child) for parent, child in self._places]
        self._put(self._adapted)
        try:
            yield
        finally:
            self._put(before)

    def _put(self, layers: Sequence[nn.Module]) -> None:
        for (parent, child), layer in zip(self._places, layers, strict=True):
            setattr(parent, child, layer)

    def _sum(self, layer: BaseTunerLayer) -> Tensor:
        weight = layer.get_base_layer().weight
        merged: Tensor = weight.float() + layer.get_delta_weight(self._adapter)
        return merged


class _MergedLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias).to(x.dtype)


class _MergedConv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self._conv_forward(x.to(self.weight.dtype), self.weight, self.bias)  # type: ignore[no-untyped-call]
        return output.to(x.dtype)


_MERGED = {nn.Linear: _MergedLinear, nn.Conv2d: _MergedConv2d}


def _plain(base: nn.Module) -> nn.Linear | nn.Conv2d:
    """A copy of the layer whose weights may be wider than what goes through it."""
    plain: nn.Linear | nn.Conv2d = copy.deepcopy(base)  # type: ignore[assignment]
    plain.__class__ = _MERGED[type(base)]  # type: ignore[index,assignment]
    return plain


def _kept(base: Tensor, merged: Tensor) -> Tensor:
    """Which share of merged − base is there once it is rounded to the dtype of base; 1 where there is none to keep."""
    wanted, found = (merged - base).flatten(), (merged.to(base.dtype).float() - base).flatten()
    square = wanted.dot(wanted)
    return torch.where(square > 0, found.dot(wanted) / square, 1.0)
