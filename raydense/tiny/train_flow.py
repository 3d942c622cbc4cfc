"""Joint pre-training of the tiny flow-matching transformer and its text encoders, stopped early on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from raydense.diffusion.flow import CPS, SCHEDULER
from raydense.diffusion.kernel import make_schedule, transition
from raydense.tiny.flow_networks import MAX_SEQUENCE_LENGTH, build_projecting_encoder, build_transformer
from raydense.tiny.networks import build_tokenizer
from raydense.tiny.renderings import decode
from raydense.tiny.train_unet import LatentBank, UnetSettings
from raydense.tiny.training import Trainer, constant_rate

_BATCH = 64
_TIMESTEPS = 1000


@dataclass(frozen=True)
class FlowSettings(UnetSettings):
    """As the U-Net's."""

    steps: int = 700


def train_flow(
    bank: LatentBank,
    folder: Path,
    *,
    seed: int,
    settings: FlowSettings | None = None,
    resume: bool = False,
    stop_at: int | None = None,
) -> tuple[Any, Any, Any]:
    """Returns (SD3Transformer2DModel, two CLIPTextModelWithProjection) with averaged weights.

    Checkpoints lie in `folder`.
    """
    settings = settings or FlowSettings()
    tokenizer = build_tokenizer()
    modules = {
        "transformer": build_transformer(seed),
        "text_encoder": build_projecting_encoder(tokenizer, seed),
        "text_encoder_2": build_projecting_encoder(tokenizer, seed + 1),
    }
    transformer, *text_encoders = modules.values()
    trainer = Trainer(
        "flow",
        modules,
        folder=folder,
        seed=seed,
        steps=settings.steps,
        peak_rate=settings.peak_rate,
        rate=constant_rate,
        ema_decay=settings.ema_decay,
    )
    if resume:
        trainer.resume()
    trainer.run(lambda generator: flow_loss(transformer, text_encoders, bank, settings, generator), stop_at=stop_at)
    for name, module in modules.items():
        module.load_state_dict(module.state_dict() | trainer.averaged_state(name))  # buffers have no average
    return transformer, text_encoders[0], text_encoders[1]


def flow_loss(
    transformer: Any,
    text_encoders: Sequence[Any],
    bank: LatentBank,
    settings: FlowSettings,
    generator: torch.Generator,
) -> Tensor:
    """Mean squared error of the predicted velocity on one random batch (Esser et al. 2024, logit-normal times).

    Returns: float32 [].
    """
    clean, tokens = bank.draw(settings, generator)
    states, pooled = caption_states(text_encoders, tokens)
    sigma = torch.randn(len(clean), generator=generator).sigmoid()
    noise = torch.randn(clean.shape, generator=generator)
    noisy = torch.lerp(clean, noise, sigma.view(-1, 1, 1, 1))
    predicted: Tensor = transformer(noisy, states, pooled, _TIMESTEPS * sigma).sample
    return functional.mse_loss(predicted, noise - clean)


def caption_states(text_encoders: Sequence[Any], tokens: Tensor) -> tuple[Tensor, Tensor]:
    """What StableDiffusion3Pipeline makes of a caption where it has no T5.

    Args:
        tokens: int64 [B, 16].

    Returns: the encoders' penultimate states side by side and zeros for T5's tokens, [B, 17, 128]; their pooled
        states side by side, [B, 128].
    """
    outputs = [encoder(tokens, output_hidden_states=True) for encoder in text_encoders]
    states = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    pooled = torch.cat([output.text_embeds for output in outputs], dim=-1)
    return functional.pad(states, (0, 0, 0, MAX_SEQUENCE_LENGTH)), pooled


@torch.no_grad()
def draw_images(
    pipeline: Any, captions: Sequence[str], *, seed: int, steps: int = 10, eta: float = 0.8
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Draws one image a caption by coefficients-preserving sampling without guidance: uint8 [B, 64, 64, 3].

    Args:
        eta: share of each step's noise that is drawn anew, as an angle (Wang & Yu 2025); 0 is Euler's method.
    """
    scheduler = {**pipeline.scheduler.config, "_class_name": SCHEDULER}
    schedule = make_schedule(scheduler, steps, eta, dynamics=CPS)
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for start in range(0, len(captions), _BATCH):
        prompts = list(captions[start : start + _BATCH])
        states, _, pooled, _ = pipeline.encode_prompt(
            prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=MAX_SEQUENCE_LENGTH
        )
        config = pipeline.transformer.config
        shape = (len(prompts), config.in_channels, config.sample_size, config.sample_size)
        latents = torch.randn(shape, generator=generator)
        for step in torch.arange(steps):
            t = step.expand(len(prompts))
            velocity = pipeline.transformer(latents, states, pooled, schedule.timesteps[t]).sample
            mean, std, _ = transition(schedule, latents, velocity, t)
            latents = mean + std * torch.randn(shape, generator=generator)
        parts.append(decode(pipeline.vae, latents))
    return np.concatenate(parts)
