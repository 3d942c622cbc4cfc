"""LoRA files as sd-scripts (Kohya) writes them, by diffusers' own conversion of their names.

sd-scripts trains SDXL and FLUX on their authors' code, so that names are that code's; FLUX's q, k and v are one layer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.loaders import FluxLoraLoaderMixin, StableDiffusionLoraLoaderMixin

from raydense.config import ConfigError
from raydense.core.messages import first_few, one_line
from raydense.pipelines.configurations import quiet_libraries
from raydense.pipelines.pipeline_files import PipelineFiles

Tensors = Mapping[str, torch.Tensor]

PREFIX = "lora_unet_"  # of a transformer's layers, too
DOWN, UP, ALPHA = "lora_down.weight", "lora_up.weight", "alpha"
UNET, FLUX, SD3 = "a U-Net", "FLUX", "Stable Diffusion 3"
BLOCKS = (  # what the names of a network's layers begin with, and whose they are
    (re.compile(rf"^{PREFIX}((down|up|input|output)_blocks|mid(dle)?_block)_"), UNET),
    (re.compile(rf"^{PREFIX}(double|single)_blocks_"), FLUX),
    (re.compile(rf"^{PREFIX}joint_blocks_"), SD3),
)
OF_KINDS = {"StableDiffusion3Pipeline": SD3, "FluxPipeline": FLUX}  # the others have a U-Net
FUSED = {"qkv": 3, "linear1": 4}  # layers of diffusers' FLUX that are one here, by the end of its name


def is_kohya(names: Iterable[str]) -> bool:
    """Whether the file is of sd-scripts or names its tensors like that, as many tools do."""
    return any(name.startswith(PREFIX) for name in names)


def from_kohya(tensors: Tensors, source: str, pipeline: PipelineFiles) -> Tensors:
    """The denoiser's part of a Kohya file under diffusers' names, in float32, each up-projection times alpha / rank.

    Raises: ConfigError for another kind of model's, tensors of another name, a layer without both factors, an alpha
        that is no number, or what diffusers does not convert.
    """
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, part = name.partition(".")
        layers.setdefault(layer, {})[part] = tensor
    odd = [
        f"{layer} with {', '.join(sorted(parts))}"
        for layer, parts in layers.items()
        if not layer.startswith(PREFIX) or parts.keys() - {ALPHA} != {DOWN, UP}
    ]
    if odd:
        raise ConfigError(f"{source}: {len(odd)} of its layers are not the two factors of a LoRA: {first_few(odd, 2)}")
    _check_kind(layers, source, pipeline.kind)
    folded = {}
    for layer, parts in layers.items():
        down, up = parts[DOWN].float(), parts[UP].float()
        folded[f"{layer}.{DOWN}"], folded[f"{layer}.{UP}"] = down, up * _scale(layer, parts, source)
    with quiet_libraries():
        try:
            named = _converted(folded, pipeline)
        except Exception as error:  # the converters' own, of every kind
            raise ConfigError(
                f"{source} is in Kohya's format, and diffusers does not convert it ({one_line(error)[:200]}); give it "
                "in diffusers' format"
            ) from None
    expected = sum(FUSED.get(layer.rpartition("_")[2], 1) if pipeline.kind in OF_KINDS else 1 for layer in layers)
    if len(named) != 2 * expected:
        raise ConfigError(
            f"{source} is in Kohya's format, and diffusers takes {len(named) // 2} of its {expected} layers over; give "
            "it in diffusers' format"
        )
    return named


def _check_kind(layers: Iterable[str], source: str, kind: str) -> None:
    """Raises: ConfigError for what diffusers cannot convert, or is of another kind of model."""
    ours = OF_KINDS.get(kind, UNET)
    for layer in layers:
        whose = next((whose for pattern, whose in BLOCKS if pattern.match(layer)), ours)
        if whose != ours:
            raise ConfigError(
                f"{source} is a LoRA of {whose} in Kohya's format ({layer}), not of a {kind}; give one of its own kind"
            )
        if whose == SD3:
            raise ConfigError(
                f"{source} is in Kohya's format of {SD3} ({layer}), which diffusers does not convert; give it in "
                "diffusers' format"
            )


def _converted(folded: dict[str, torch.Tensor], pipeline: PipelineFiles) -> Tensors:
    if OF_KINDS.get(pipeline.kind) == FLUX:
        named: Tensors = FluxLoraLoaderMixin.lora_state_dict(folded)
        return named
    blocks = SimpleNamespace(layers_per_block=(pipeline["unet"] or {}).get("layers_per_block", 2))
    named, _ = StableDiffusionLoraLoaderMixin.lora_state_dict(folded, unet_config=blocks)
    return named


def _scale(layer: str, parts: Mapping[str, Any], source: str) -> float:
    """alpha / rank; sd-scripts reads a layer without an alpha, or with 0, as alpha = rank."""
    if ALPHA not in parts:
        return 1.0
    alpha = parts[ALPHA]
    if alpha.numel() != 1:
        raise ConfigError(f"{source}: {layer}.{ALPHA} {list(alpha.shape)} is not one number")
    rank = next(iter(parts[DOWN].shape), 0) or 1  # a tensor without one is refused where shapes are compared
    return (alpha.item() or rank) / rank
