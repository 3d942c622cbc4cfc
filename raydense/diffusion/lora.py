"""The LoRA as a file that any diffusers pipeline loads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import save_file

from raydense.core.files import replacing
from raydense.core.types import PolicyWeights

FILE_NAME = "pytorch_lora_weights.safetensors"
KEY = "lora_adapter_metadata"  # diffusers' own


def save_diffusers_lora(
    directory: Path, weights: PolicyWeights, lora: LoraConfig, origin: Mapping[str, Any] | None = None
) -> Path:
    """Writes `pytorch_lora_weights.safetensors` for `StableDiffusionPipeline.load_lora_weights`.

    One metadata key only: safetensors writes several in no fixed order, and equal weights must give equal bytes.
    Args: origin: what the LoRA is of; joins that key's JSON under names that diffusers passes over.
    """
    peft_names = {
        name.replace(".default.weight", ".weight"): torch.from_numpy(np.array(array))
        for name, array in weights.tensors.items()
    }
    tensors = {f"unet.{name}": tensor for name, tensor in convert_state_dict_to_diffusers(peft_names).items()}
    adapter = {
        "r": lora.r,
        "lora_alpha": lora.lora_alpha,
        "target_modules": sorted(lora.target_modules or ()),
    }
    described = {**{f"unet.{key}": value for key, value in adapter.items()}, **(origin or {})}
    metadata = json.dumps(described, sort_keys=True)
    directory.mkdir(parents=True, exist_ok=True)
    with replacing(directory / FILE_NAME) as partial:
        save_file(tensors, partial, metadata={KEY: metadata})
    return directory / FILE_NAME


def read_origin(path: Path) -> Mapping[str, Any]:
    """What a file of `save_diffusers_lora` says of itself."""
    with safe_open(path, framework="np") as file:
        origin: Mapping[str, Any] = json.loads(file.metadata()[KEY])
    return origin
