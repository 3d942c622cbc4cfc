"""A work unit as a sampler makes it against diffusers' own pipeline on the same networks, untuned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from actors.sampler import denoise
from raydense.bench.architectures import bench_policy
from raydense.checks.noise import drifted
from raydense.config import Config
from raydense.families.conditioning import repeated
from raydense.tiny.networks import build_scheduler

PROMPT = "a red circle"
DRIFT = 1e-2


def against_pipeline(
    model: str, config: Config, device: torch.device, images: int
) -> tuple[Callable[[int], Any], Callable[[int], Any]]:
    """Ours and theirs: latents, log-probabilities and pictures of one prompt; and pictures.

    Both have the same LoRA merged, the same steps with η = 1 and the same guidance.
    """
    dtype: torch.dtype = getattr(torch, config.sampler.dtype)
    policy = bench_policy(model, config, dtype=dtype, device=device, with_decoder=True, merged=True)
    policy.bind(drifted(policy, DRIFT))
    embeds, shape = repeated(policy.encode(PROMPT), images), policy.family.latent_shape
    unet = UNet2DConditionModel.from_config(policy.network.config).to(device, dtype).eval()
    unet.load_state_dict(policy.network.state_dict())
    text = policy.texts["text_encoder"]
    pipeline = StableDiffusionPipeline(
        policy.vae, text.network.to(dtype), text.tokenizer, unet,
        DDIMScheduler.from_config(build_scheduler().config), None, None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)

    def ours(index: int) -> Any:
        draws = torch.Generator().manual_seed(index)
        noise = torch.randn((images, config.steps.count + 1, *shape), generator=draws).to(device)
        return denoise(policy, noise, embeds, torch.float16)

    def theirs(index: int) -> Any:
        return pipeline(
            PROMPT, num_images_per_prompt=images, num_inference_steps=config.steps.count, eta=1.0, output_type="np",
            guidance_scale=config.sampler.guidance_scale, generator=torch.Generator(device).manual_seed(index),
            height=shape[1] * pipeline.vae_scale_factor, width=shape[2] * pipeline.vae_scale_factor,
        ).images  # fmt: skip

    return ours, theirs
