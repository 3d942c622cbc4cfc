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
from raydense.runtime.dry_run import SD15_FILES
from raydense.tiny.models import build_scheduler, build_tokenizer

TOKENS = 77


@dataclass(frozen=True)
class BenchModel:
    """One architecture, and the preset whose schedule of draws it is measured with.

    unet, vae, text: what differs from the diffusers and transformers classes' defaults, which are SD1.5's U-Net.
        None in all three: the embedded pipeline.
    overrides: of the preset.
    """

    preset: str
    overrides: tuple[str, ...]
    unet: Mapping[str, Any] | None = None
    vae: Mapping[str, Any] | None = None
    text: Mapping[str, Any] | None = None

    def config(self, *overrides: str) -> Config:
        """The preset as it is measured."""
        return load_config(None, self.preset, [*self.overrides, *overrides])


MODELS: Mapping[str, BenchModel] = {
    "tiny": BenchModel("tiny", ()),
    "unet-78m": BenchModel(
        "single-prompt",
        ("sampler.latent_size=32", "train.batch_groups=1", "learner.dtype=float32", "sampler.dtype=float32"),
        unet={"sample_size": 32, "cross_attention_dim": 320, "block_out_channels": (96, 192, 384, 384)},
        vae={**SD15_FILES["vae"], "block_out_channels": (64, 128, 256, 256)},
        text={"hidden_size": 320, "intermediate_size": 1280, "num_attention_heads": 5, "num_hidden_layers": 6},
    ),
    "sd15": BenchModel(
        "single-prompt",
        (),
        unet=SD15_FILES["unet"],
        vae=SD15_FILES["vae"],
        text=SD15_FILES["text_encoder"],
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
