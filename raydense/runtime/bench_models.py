"""The models of benchmarks: real architectures, random weights, nothing downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from raydense.config import Config, load_config
from raydense.core.ddim import make_schedule
from raydense.core.policy import Policy
from raydense.runtime.build import build_policy, lora_config
from raydense.tiny.models import build_scheduler, build_tokenizer

TOKENS = 77
_VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
_VIT_H = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
_VIT_B = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}


@dataclass(frozen=True)
class BenchModel:
    """One architecture, and the preset whose schedule of draws it is measured with.

    unet, vae, text: what differs from the diffusers and transformers classes' defaults, which are SD1.5's U-Net.
    vision: the scorer's image tower. None in all four: the embedded pipeline and its own scorer.
    overrides: of the preset.
    """

    preset: str
    overrides: tuple[str, ...]
    unet: Mapping[str, Any] | None = None
    vae: Mapping[str, Any] | None = None
    text: Mapping[str, Any] | None = None
    vision: Mapping[str, Any] | None = None

    def config(self, *overrides: str) -> Config:
        """The preset as it is measured."""
        return load_config(None, self.preset, [*self.overrides, *overrides])


MODELS: Mapping[str, BenchModel] = {
    "tiny": BenchModel("tiny", ()),
    "unet-78m": BenchModel(
        "single-prompt",
        ("sampler.latent_size=32", "train.batch_groups=1", "learner.dtype=float32", "sampler.dtype=float32"),
        unet={"sample_size": 32, "cross_attention_dim": 320, "block_out_channels": (96, 192, 384, 384)},
        vae={**_VAE, "block_out_channels": (64, 128, 256, 256)},
        text={"hidden_size": 320, "intermediate_size": 1280, "num_attention_heads": 5, "num_hidden_layers": 6},
        vision={**_VIT_B, "patch_size": 16},
    ),
    "sd15": BenchModel(
        "single-prompt",
        (),
        unet={"sample_size": 64, "cross_attention_dim": 768},
        vae={**_VAE, "block_out_channels": (128, 256, 512, 512)},
        text={"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12},
        vision={**_VIT_H, "patch_size": 14},
    ),
}


def bench_policy(name: str, config: Config, *, dtype: torch.dtype, device: torch.device, with_decoder: bool) -> Policy:
    """The policy of `MODELS[name]`."""
    model = MODELS[name]
    if model.unet is None or model.vae is None or model.text is None:
        return build_policy(config, dtype=str(dtype).removeprefix("torch."), device=device, with_decoder=with_decoder)
    text = {**model.text, "max_position_embeddings": TOKENS}
    return Policy(
        _random(lambda: UNet2DConditionModel(**model.unet), dtype, device),
        _random(lambda: CLIPTextModel(CLIPTextConfig(**text)), torch.float32, device),
        _tokenizer(),
        _random(lambda: AutoencoderKL(**model.vae), dtype, device) if with_decoder else None,
        make_schedule(build_scheduler().config, config.steps.count, config.steps.eta),
        guidance_scale=config.sampler.guidance_scale,
        lora=lora_config(config),
        seed=config.seed,
        decode_batch=config.sampler.decode_batch,
        gradient_checkpointing=config.learner.gradient_checkpointing,
    )


def _tokenizer() -> Any:
    tokenizer = build_tokenizer()
    tokenizer.model_max_length = TOKENS
    return tokenizer


def _random(build: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Built in its dtype on its device, from a fixed seed."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng(), device:
            torch.manual_seed(0)
            return build()
    finally:
        torch.set_default_dtype(before)
