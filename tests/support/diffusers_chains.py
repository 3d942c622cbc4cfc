"""What diffusers' own pipelines make of given noise, without randomness: what another sampler must agree with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

TEXT_TOKENS = 12  # of T5, where there is one


def load_pipeline(pipeline_dir: Path) -> Any:
    """diffusers' own pipeline on these files, in float32, without its progress bar."""
    from diffusers import DiffusionPipeline

    index = json.loads((pipeline_dir / "model_index.json").read_text())
    absent = {name: None for name, part in index.items() if part == [None, None]}  # SD3 wants to be told of each
    pipeline = DiffusionPipeline.from_pretrained(pipeline_dir, local_files_only=True, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def reference_latents(
    pipeline_dir: Path,
    prompt: str,
    noise: torch.Tensor,
    *,
    steps: int,
    guidance: float,
    negative_prompt: str | None = None,
    pipeline: Any = None,
    **settings: Any,
) -> torch.Tensor:
    """The final latents of the pipeline in this directory, float32 [1, C, H, W].

    Stable Diffusion and SDXL run DDIM at eta = 0 on their own schedule, SD3 and FLUX their own scheduler.

    Args:
        noise: float32 [1, C, H, W], the latents to start from, not packed.
        guidance: the pipeline's guidance_scale; an input of the network for FLUX.
        pipeline: one that was loaded and changed; None: as it lies there.
        settings: further arguments of the pipeline's call.
    """
    from diffusers import DDIMScheduler

    pipeline = pipeline or load_pipeline(pipeline_dir)
    family = type(pipeline).__name__
    if family in ("StableDiffusionPipeline", "StableDiffusionXLPipeline"):
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
        settings = {"eta": 0.0, **settings}
    else:
        settings = {"max_sequence_length": TEXT_TOKENS, **settings}
    height, width = (int(n) * pipeline.vae_scale_factor for n in noise.shape[2:])
    packed = family == "FluxPipeline"
    latents: torch.Tensor = pipeline(
        prompt,
        negative_prompt=negative_prompt,
        height=height,
        width=width,
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=pipeline._pack_latents(noise, *noise.shape) if packed else noise,
        output_type="latent",
        **settings,
    ).images
    return pipeline._unpack_latents(latents, height, width, pipeline.vae_scale_factor) if packed else latents
