"""How a network holds a LoRA whose values are float32: beside its weights, to be trained, or merged into them.

A loss needs the policy as the learner computes it; what drew the trajectories may round elsewhere (METHOD §3). So
samplers merge: their network is then as fast as one without a LoRA.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

SURVIVES = 0.99  # of an update, below which it is not merged


class LiveLora(Protocol):
    """A frozen network's one adapter."""

    parameters: dict[str, nn.Parameter]  # float32

    def update(self) -> bool:
        """What the network computes follows the parameters; call it when they have changed.

        Returns: whether it has other layers than before.
        """

    def beside(self) -> AbstractContextManager[None]:
        """Inside this context the network is one with adapted layers, and has the weights that were loaded."""

    def off(self) -> AbstractContextManager[None]:
        """Inside this context the network is the one that was loaded."""


class LoraBeside:
    """As peft computes it, in the network's dtype: a narrower one has copies of the parameters.

    Their gradients are added up in the parameters, in float32.
    Args:
        network: with one adapter, frozen but for it.
        same_code: whether it is off as one whose B is 0, which goes through the same code: what is compiled for other
            layers, or for no gradient, rounds elsewhere.
    """

    def __init__(self, network: nn.Module, same_code: bool = False) -> None:
        self._layers, self._same_code = _adapted_layers(network), same_code
        self._live = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.parameters: dict[str, nn.Parameter] = {}
        for name, live in self._live.items():
            self.parameters[name] = live
            if live.dtype.itemsize < 4:
                self.parameters[name] = nn.Parameter(live.detach().float())
                hook = _pass_on(self.parameters[name])
                live.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def update(self) -> bool:
        for name, live in self._live.items():
            if live is not self.parameters[name]:
                live.copy_(self.parameters[name])
        return False

    def beside(self) -> AbstractContextManager[None]:
        return nullcontext()

    def off(self) -> AbstractContextManager[None]:
        return self._zeroed() if self._same_code else _switched_off(self._layers)

    @contextmanager
    def _zeroed(self) -> Iterator[None]:
        ups: list[Tensor] = [p for name, p in self.parameters.items() if ".lora_B." in name]
        with torch.no_grad():
            kept = [p.clone() for p in ups]
            torch._foreach_zero_(ups)
        self.update()
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(ups, kept)
            self.update()


def _pass_on(parameter: nn.Parameter) -> Callable[[Tensor], None]:
    def add(live: Tensor) -> None:
        assert live.grad is not None
        gradient, live.grad = live.grad, None
        parameter.grad = gradient.float() if parameter.grad is None else parameter.grad.add_(gradient)

    return add


def _adapted_layers(network: nn.Module) -> dict[str, BaseTunerLayer]:
    return {name: module for name, module in network.named_modules() if isinstance(module, BaseTunerLayer)}


@contextmanager
def _switched_off(adapted: Mapping[str, BaseTunerLayer]) -> Iterator[None]:
    layers = adapted.values()
    try:
        for layer in layers:
            layer.enable_adapters(False)
        with torch.no_grad():
            yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


class MergedLora:
    """Puts plain layers W + ΔW into the places of a network's adapted ones, which keep W and the LoRA.

    In 16 bits W + ΔW rounds, and a ΔW below half a last place of W vanishes, as early in a run: where less than
    `SURVIVES` of the update would be kept, the adapted layers stay. The plain ones keep their place in memory.

    Args: network: with one adapter of this name, frozen but for it; changed in place.
    """

    def __init__(self, network: nn.Module, adapter: str) -> None:
        self._adapter, self._adapted = adapter, _adapted_layers(network)
        self.parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        for parameter in self.parameters.values():
            parameter.data = parameter.data.float()  # peft gives it the dtype of the layer below
        self._plain: list[Any] = []
        self._places: list[tuple[nn.Module, str]] = []
        for name, layer in self._adapted.items():
            parent, _, child = name.rpartition(".")
            self._places.append((network.get_submodule(parent), child))
            self._plain.append(copy.deepcopy(layer.get_base_layer()))
        self.update()

    @torch.no_grad()
    def update(self) -> bool:
        kept = torch.zeros((), device=next(iter(self.parameters.values())).device)
        update = kept.clone()
        for layer, plain in zip(self._adapted.values(), self._plain, strict=True):
            base: Tensor = layer.get_base_layer().weight
            wanted = layer.get_delta_weight(self._adapter)
            plain.weight.copy_(base + wanted)
            kept += ((plain.weight.float() - base) * wanted).sum()
            update += wanted.square().sum()
        before = self._in_place()
        self._put(self._plain if bool(kept >= SURVIVES * update) else self._adapted.values())
        return self._in_place() != before

    @contextmanager
    def beside(self) -> Iterator[None]:
        before = self._in_place()
        self._put(self._adapted.values())
        try:
            yield
        finally:
            self._put(before)

    @contextmanager
    def off(self) -> Iterator[None]:
        with self.beside(), _switched_off(self._adapted):
            yield

    def _in_place(self) -> list[nn.Module]:
        return [getattr(parent, child) for parent, child in self._places]

    def _put(self, layers: Iterable[nn.Module]) -> None:
        for (parent, child), layer in zip(self._places, layers, strict=True):
            setattr(parent, child, layer)
