"""Parameters, work and memory of a pipeline's networks, from their configurations alone: nothing is allocated.

The networks are built and run on PyTorch's meta device, where a tensor has a shape and no content.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import wraps
from types import MappingProxyType
from typing import Any, ParamSpec, Self, TypeVar

import torch
import torch.nn.functional as F
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from raydense.diffusion.lean import keep_less
from raydense.families.family import Family
from raydense.pipelines.configurations import quiet_libraries
from raydense.pipelines.networks import class_of

P = ParamSpec("P")
R = TypeVar("R")


def once(compute: Callable[P, R]) -> Callable[P, R]:
    """Keeps results by what the arguments say: a run's checks and plans ask for the same networks, seconds each."""
    known: dict[str, R] = {}

    @wraps(compute)
    def look_up(*args: P.args, **kwargs: P.kwargs) -> R:
        key = repr((args, sorted(kwargs.items())))  # of plain values alone
        if key not in known:
            known[key] = compute(*args, **kwargs)
        return known[key]

    return look_up


@dataclass(frozen=True)
class Footprint:
    """Of one network; `flops` and `peak_bytes` (of what it allocates beside its weights) for one latent."""

    parameters: int
    lora_parameters: int
    adapted_parameters: int  # of the layers under a LoRA
    flops: float
    peak_bytes: int


@once
def denoiser_footprint(
    family: Family, lora: LoraConfig, *, dtype: torch.dtype, with_gradient: bool, checkpointed: bool = False
) -> Footprint:
    """The network with its LoRA: a forward pass, and the backward pass if asked, on one latent.

    Args: checkpointed: whether the backward pass computes activations again.
    """
    network = denoiser_on_meta(family, dtype)
    network.requires_grad_(False)
    parameters = _count(network)
    with torch.device("meta"):
        network.add_adapter(lora)
        with quiet_libraries():
            network.to(dtype)  # peft leaves float32 here
        keep_less(network)  # as the learner does; gives layers another class, in place
    meter = _Meter(network)
    if checkpointed:
        network.enable_gradient_checkpointing(meter.checkpoint)
    adapted = sum(_count(m.get_base_layer()) for m in network.modules() if isinstance(m, BaseTunerLayer))
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    inputs = family.example_inputs(dtype, "meta")
    with torch.set_grad_enabled(with_gradient), meter:
        output = family.call(network, *inputs)
        if with_gradient:
            output.float().sum().backward()  # type: ignore[no-untyped-call]
    return Footprint(parameters, trained, adapted, meter.flops, meter.peak_bytes)


@once
def lora_layers(family: Family) -> Mapping[str, bool]:
    """Every module of the network by its name: whether it is a layer that takes a LoRA."""
    modules = denoiser_on_meta(family).named_modules()
    return MappingProxyType({name: isinstance(module, nn.Linear | nn.Conv2d) for name, module in modules})


@once
def lora_shapes(family: Family, lora: LoraConfig) -> Mapping[str, tuple[int, ...]]:
    """Shapes of the policy's LoRA tensors, by name."""
    network = denoiser_on_meta(family)
    network.requires_grad_(False)
    with torch.device("meta"):
        network.add_adapter(lora)
    return MappingProxyType({name: tuple(p.shape) for name, p in network.named_parameters() if p.requires_grad})


@once
def decoder_footprint(vae_config: Mapping[str, Any], *, latent_size: tuple[int, int], dtype: torch.dtype) -> Footprint:
    """Decoding one latent into an image."""
    vae = on_meta("AutoencoderKL", vae_config, dtype)
    with torch.no_grad(), _Meter(vae) as meter:
        vae.decode(torch.zeros(1, vae.config.latent_channels, *latent_size, dtype=dtype, device="meta"))
    return Footprint(_count(vae), 0, 0, meter.flops, meter.peak_bytes)


@once
def judge_footprint(name: str, config: Mapping[str, Any]) -> Footprint:
    """A judge's network, of a class of transformers, looking at one picture."""
    network = on_meta(name, config)
    eye = getattr(network, "vision_model", network)
    size = eye.config.image_size
    with torch.no_grad(), _Meter(network) as meter:
        eye(pixel_values=torch.zeros(1, 3, size, size, device="meta"))
    return Footprint(_count(network), 0, 0, meter.flops, meter.peak_bytes)


@once
def text_encoder_parameters(name: str, text_config: Mapping[str, Any]) -> int:
    """How many values a text encoder of this class has."""
    return _count(on_meta(name, text_config))


def denoiser_on_meta(family: Family, dtype: torch.dtype = torch.float32) -> Any:
    """The network that is trained. Its configuration must be known."""
    part = family.layout.denoiser
    return on_meta(family.layout.networks[part], family.files[part] or {}, dtype)


def on_meta(name: str, config: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> Any:
    """A network of this class, whose weights have shapes and no content."""
    cls, before = class_of(name), torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            return (
                cls(cls.config_class(**config)) if issubclass(cls, PreTrainedModel) else cls.from_config(dict(config))
            )
    finally:
        torch.set_default_dtype(before)


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


class _Meter(ExitStack):
    """Counts work and the most bytes that live at once, of what is computed inside the block."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._attention, self._memory = _Fused(), _PeakMemory(network)
        self._counter = FlopCounterMode(display=False)
        self._counter.mod_tracker = _NoModules()  # type: ignore[assignment]

    def __enter__(self) -> Self:
        for mode in (self._memory, self._counter, self._attention):
            self.enter_context(mode)
        return super().__enter__()

    def checkpoint(self, module: nn.Module, *inputs: Any) -> Any:
        """As diffusers does it; a backward pass leaves function modes, so that what it computes again enters ours."""
        modes = nullcontext(), self._attention
        return checkpoint(module.__call__, *inputs, use_reentrant=False, context_fn=lambda: modes)

    @property
    def flops(self) -> float:
        return float(self._counter.get_total_flops()) + self._attention.flops

    @property
    def peak_bytes(self) -> int:
        return self._memory.peak


class _NoModules(nullcontext[None]):
    """In the place of PyTorch's tracker, which counts by module: its hooks keep alive what is computed again."""

    parents = frozenset({"Global"})


class _PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Args: network: whose own tensors, and views of them, take no memory of their own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._live = {tensor.untyped_storage()._cdata: 0 for tensor in network.state_dict().values()}  # storage → bytes
        self.peak = self._now = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (key := tensor.untyped_storage()._cdata) not in self._live:
                self._live[key] = tensor.untyped_storage().nbytes()
                weakref.finalize(tensor.untyped_storage(), self._forget, key)
                self._now += self._live[key]
                self.peak = max(self.peak, self._now)
        return result

    def _forget(self, key: int) -> None:
        self._now -= self._live.pop(key, 0)


class _Fused(TorchFunctionMode):
    """What has a kernel of its own, for which the meta device would keep parts: attention, upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0.0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.interpolate:
            size = kwargs.get("size") or [int(edge * kwargs["scale_factor"]) for edge in args[0].shape[2:]]
            return _Upsampling.apply(args[0], (*args[0].shape[:2], *size))  # type: ignore[no-untyped-call]
        if function is not F.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        query, key, value = args[:3] if len(args) >= 3 else (kwargs["query"], kwargs["key"], kwargs["value"])
        result: Tensor = _Attention.apply(query, key, value, self)  # type: ignore[no-untyped-call]
        return result

    def attend(self, query: Tensor, key: Tensor, times: float) -> None:
        self.flops += times * 4.0 * query.numel() * key.shape[-2]  # two products of L x S x D a head


class _Upsampling(torch.autograd.Function):
    """Shapes alone."""

    @staticmethod
    def forward(context: Any, x: Tensor, shape: Sequence[int]) -> Tensor:
        context.shape = x.shape
        return x.new_empty(shape)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> Any:
        return gradients[0].new_empty(context.shape), None


class _Attention(torch.autograd.Function):
    """Shapes alone: keeps inputs and output for the backward pass, as fused kernels do."""

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor, counter: _Fused) -> Tensor:
        output, context.counter = torch.empty_like(query), counter
        counter.attend(query, key, 1.0)
        context.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(context: Any, *gradients: Any) -> Any:
        query, key, value, _ = context.saved_tensors
        context.counter.attend(query, key, 2.5)  # five products, one of them recomputed
        return *(torch.empty_like(tensor) for tensor in (query, key, value)), None
