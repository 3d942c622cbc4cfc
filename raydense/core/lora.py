"""The LoRA as a file that any diffusers pipeline loads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig

from raydense.core.types import PolicyWeights

FILE_NAME = "pytorch_lora_weights.safetensors"


def save_diffusers_lora(directory: Path, weights: PolicyWeights, lora: LoraConfig) -> Path:
    """Writes `pytorch_lora_weights.safetensors` for `StableDiffusionPipeline.load_lora_weights`."""
    peft_names = {
        name.replace(".default.weight", ".weight"): torch.from_numpy(np.array(array))
        for name, array in weights.tensors.items()
    }
    metadata = {"r": lora.r, "lora_alpha": lora.lora_alpha, "target_modules": sorted(lora.target_modules)}
    StableDiffusionLoraLoaderMixin.save_lora_weights(
        directory, unet_lora_layers=convert_state_dict_to_diffusers(peft_names), unet_lora_adapter_metadata=metadata
    )
    return directory / FILE_NAME
