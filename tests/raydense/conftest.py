"""LoRAs that others train, and what they predict in a plain pipeline and in our policy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from raydense.diffusion.lora_files import load_lora, read_lora
from raydense.diffusion.policy import Policy
from raydense.families.conditioning import stacked


@pytest.fixture(scope="session")
def plain_pipeline(pipeline_dir: Path) -> Callable[[], StableDiffusionPipeline]:
    """The small pipeline as diffusers has it."""

    def load() -> StableDiffusionPipeline:
        return StableDiffusionPipeline(
            unet=UNet2DConditionModel.from_pretrained(pipeline_dir, subfolder="unet"),
            vae=AutoencoderKL.from_pretrained(pipeline_dir, subfolder="vae"),
            text_encoder=CLIPTextModel.from_pretrained(pipeline_dir, subfolder="text_encoder"),
            tokenizer=CLIPTokenizer.from_pretrained(pipeline_dir, subfolder="tokenizer"),
            scheduler=DDIMScheduler.from_pretrained(pipeline_dir, subfolder="scheduler"),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    return load


@pytest.fixture(scope="session")
def train_kohya() -> Callable[..., dict[str, Tensor]]:
    """A random LoRA as sd-scripts trains it with `network_dim` and `conv_dim`: returns what its file holds, and merges
    it into `unet`: train_kohya(unet, dim=4, alpha=2.0, conv_dim=2, conv_alpha=1.0)."""

    def train(unet: Any, *, dim: int, alpha: float, conv_dim: int, conv_alpha: float) -> dict[str, Tensor]:
        draws, tensors = torch.Generator().manual_seed(0), {}
        for name, module in unet.named_modules():
            if not isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                continue
            if not any(part in name for part in ("attentions", "resnets", "samplers")):
                continue  # of Transformer2DModel, ResnetBlock2D, Downsample2D and Upsample2D
            shape = module.weight.shape
            is_small = shape[2:] in ((), (1, 1))
            rank, own_alpha = (dim, alpha) if is_small else (conv_dim, conv_alpha)
            down = 0.3 * torch.randn((rank, *shape[1:]), generator=draws)
            up = 0.3 * torch.randn((shape[0], rank, *(1 for _ in shape[2:])), generator=draws)
            module.weight.data += (up.flatten(1) @ down.flatten(1)).view(shape) * own_alpha / rank
            prefix = f"lora_unet_{name.replace('.', '_')}"
            tensors |= {f"{prefix}.lora_down.weight": down, f"{prefix}.lora_up.weight": up}
            tensors[f"{prefix}.alpha"] = torch.tensor(own_alpha)
        return tensors

    return train


@pytest.fixture(scope="session")
def predict_from(make_policy: Callable[..., Policy]) -> Callable[[str], tuple[Tensor, tuple[Tensor, ...]]]:
    """What a policy that starts from a LoRA file predicts, and the latents, timesteps and embeddings that it saw."""

    def predict(location: str) -> tuple[Tensor, tuple[Tensor, ...]]:
        file = read_lora(location)
        policy = make_policy(rank=file.rank, alpha=file.alpha, targets=sorted(file.ranks), guidance_scale=1.0)
        shapes = {name: array.shape for name, array in policy.weights().tensors.items()}
        policy.bind(load_lora(location, shapes, rank=file.rank, alpha=file.alpha))
        x, t = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2])
        embeds = stacked([policy.encode("a cat"), policy.encode("a dog")])
        with torch.no_grad():
            return policy.predict(x, t, embeds), (x, policy.schedule.timesteps[t], embeds["prompt_embeds"])

    return predict
