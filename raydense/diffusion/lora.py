"""The LoRA as a file that any diffusers pipeline loads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from raydense.config import ConfigError
from raydense.core.types import PolicyWeights
from raydense.files.durable import replacing

if TYPE_CHECKING:
    from peft import LoraConfig

FILE_NAME = "pytorch_lora_weights.safetensors"
KEY = "lora_adapter_metadata"  # diffusers' own
PREFERENCES = "preferences"  # beside the kinds of scorers, as what a LoRA learned from


def save_diffusers_lora(
    directory: Path,
    weights: PolicyWeights,
    lora: LoraConfig,
    origin: Mapping[str, Any] | None = None,
    denoiser: str = "unet",
) -> Path:
    """Writes `pytorch_lora_weights.safetensors` for a diffusers pipeline's `load_lora_weights`.

    Every layer's names have one form, which is not what diffusers' own converter gives: its loader judges all names by
    the first, and drops those of another form.
    One metadata key only: safetensors writes several in no fixed order, and equal weights must give equal bytes.
    Args:
        origin: what the LoRA is of; joins that key's JSON under names that diffusers passes over.
        denoiser: the folder of the network that it adapts, which begins all names.
    """
    tensors = {_diffusers_name(name, denoiser): np.ascontiguousarray(array) for name, array in weights.tensors.items()}
    adapter = {
        "r": lora.r,
        "lora_alpha": lora.lora_alpha,
        "target_modules": sorted(lora.target_modules or ()),
    }
    described = {**{f"{denoiser}.{key}": value for key, value in adapter.items()}, **(origin or {})}
    metadata = json.dumps(described, sort_keys=True)
    directory.mkdir(parents=True, exist_ok=True)
    with replacing(directory / FILE_NAME) as partial:
        save_file(tensors, partial, metadata={KEY: metadata})
    return directory / FILE_NAME


def _diffusers_name(name: str, denoiser: str) -> str:
    """U-Nets' names are in the older form, which other programs know, too."""
    down, up = ("lora.down", "lora.up") if denoiser == "unet" else ("lora_A", "lora_B")
    for half, other in (("A", down), ("B", up)):
        name = name.replace(f".lora_{half}.default.weight", f".{other}.weight")
    return f"{denoiser}.{name}"


def read_origin(path: Path) -> Mapping[str, Any]:
    """What a file of `save_diffusers_lora` says of itself."""
    try:
        with safe_open(path, framework="np") as file:
            origin: Mapping[str, Any] = json.loads((file.metadata() or {})[KEY])
        if isinstance(origin, dict) and isinstance(origin.get("reward"), dict):
            return origin
    except (OSError, SafetensorError, ValueError, KeyError):
        pass
    raise ConfigError(f"{path} does not say what it was trained on; it is not the file that a run of raydense wrote")
