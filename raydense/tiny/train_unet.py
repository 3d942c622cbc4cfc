"""Joint pre-training of the tiny U-Net and its text encoder, stopped early on purpose."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from raydense.tiny.networks import build_scheduler, build_text_encoder, build_tokenizer, build_unet, tokenize
from raydense.tiny.oracle import score
from raydense.tiny.renderings import encode, render_bank
from raydense.tiny.scenes import training_captions
from raydense.tiny.training import Trainer, constant_rate

_BANK_SEED = 3


@dataclass(frozen=True)
class UnetSettings:
    """Everything but the seed and the autoencoder that decides the U-Net's and text encoder's weights.

    `steps` is far fewer than the model could use: what it still gets wrong is what alignment can improve.
    """

    steps: int = 1050
    batch: int = 64
    drawings: int = 24
    peak_rate: float = 1e-3
    ema_decay: float = 0.99
    caption_dropout: float = 0.1


@dataclass(frozen=True)
class LatentBank:
    """Encoded drawings of the training captions.

    latents: float32 [C, N, 4, 8, 8], scaled to unit standard deviation.
    tokens: int64 [C + 1, 16], the captions' token ids and, last, the empty caption's.
    """

    latents: Tensor
    tokens: Tensor

    def draw(self, settings: UnetSettings, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A batch of clean latents and their captions' tokens, of which some are the empty caption's."""
        captions, drawings = self.latents.shape[:2]
        size = (settings.batch,)
        caption = torch.randint(captions, size, generator=generator)
        clean = self.latents[caption, torch.randint(drawings, size, generator=generator)]
        dropped = torch.rand(size, generator=generator) < settings.caption_dropout
        return clean, self.tokens[caption.masked_fill(dropped, captions)]


def encode_bank(vae: Any, tokenizer: Any, drawings: int) -> LatentBank:
    """Renders and encodes `drawings` scenes a training caption."""
    captions = training_captions()
    images = render_bank(captions, drawings, _BANK_SEED).images
    latents = encode(vae, images.reshape(-1, *images.shape[2:]))
    return LatentBank(
        latents.reshape(len(captions), drawings, *latents.shape[1:]), tokenize(tokenizer, [*captions, ""])
    )


def train_unet(
    bank: LatentBank,
    folder: Path,
    *,
    seed: int,
    settings: UnetSettings | None = None,
    resume: bool = False,
    stop_at: int | None = None,
) -> tuple[Any, Any]:
    """Returns (UNet2DConditionModel, CLIPTextModel) with averaged weights; checkpoints lie in `folder`."""
    settings = settings or UnetSettings()
    unet, text_encoder = build_unet(seed), build_text_encoder(build_tokenizer(), seed)
    trainer = Trainer(
        "unet",
        {"unet": unet, "text_encoder": text_encoder},
        folder=folder,
        seed=seed,
        steps=settings.steps,
        peak_rate=settings.peak_rate,
        rate=constant_rate,
        ema_decay=settings.ema_decay,
    )
    if resume:
        trainer.resume()
    alphas_cumprod: Tensor = build_scheduler().alphas_cumprod
    trainer.run(
        lambda generator: unet_loss(unet, text_encoder, bank, alphas_cumprod, settings, generator),
        stop_at=stop_at,
    )
    unet.load_state_dict(trainer.averaged_state("unet"))
    text_encoder.load_state_dict(trainer.averaged_state("text_encoder"))
    return unet, text_encoder


def unet_loss(
    unet: Any,
    text_encoder: Any,
    bank: LatentBank,
    alphas_cumprod: Tensor,
    settings: UnetSettings,
    generator: torch.Generator,
) -> Tensor:
    """Mean squared error of the predicted noise on one random batch (Ho et al. 2020, equation 14).

    Args:
        alphas_cumprod: float32 [1000].

    Returns: float32 [].
    """
    clean, tokens = bank.draw(settings, generator)
    timestep = torch.randint(len(alphas_cumprod), (settings.batch,), generator=generator)
    noise = torch.randn(clean.shape, generator=generator)
    alpha = alphas_cumprod[timestep].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * clean + (1.0 - alpha).sqrt() * noise
    predicted: Tensor = unet(noisy, timestep, text_encoder(tokens).last_hidden_state).sample
    return functional.mse_loss(predicted, noise)


def sample_images(
    pipeline: Any, captions: list[str], *, seed: int, steps: int = 10, guidance: float = 1.0
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Draws one image a caption with stochastic DDIM (eta 1): uint8 [B, 64, 64, 3]."""
    pipeline.set_progress_bar_config(disable=True)
    parts = []
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, len(captions), 64):
        output = pipeline(
            prompt=captions[start : start + 64],
            num_inference_steps=steps,
            guidance_scale=guidance,
            eta=1.0,
            generator=generator,
            output_type="np",
        )
        parts.append((output.images * 255.0).round().astype(np.uint8))
    return np.concatenate(parts)


def fully_right_share(pipeline: Any, captions: list[str], *, seed: int) -> float:
    """Share of one sample a caption that the oracle finds fully right."""
    return float(score(sample_images(pipeline, captions, seed=seed), captions).mean())
