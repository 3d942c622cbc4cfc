"""Pre-training of the tiny autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raydense.tiny.networks import build_vae
from raydense.tiny.renderings import RenderingBank, decode, encode, render_bank, to_pixels
from raydense.tiny.scenes import BACKGROUND, training_captions
from raydense.tiny.training import Trainer, cosine_rate

_BANK_SEED = 1
_CHECK_SEED = 2


@dataclass(frozen=True)
class VaeSettings:
    """Everything but the seed that decides the autoencoder's weights."""

    steps: int = 1100
    batch: int = 16
    drawings: int = 16
    peak_rate: float = 4e-3
    kl_weight: float = 1e-3
    chroma_weight: float = 1.0
    object_weight: float = 3.0


def vae_bank(settings: VaeSettings) -> RenderingBank:
    """The renderings that the autoencoder trains on."""
    return render_bank(training_captions(), settings.drawings, _BANK_SEED)


def train_vae(
    bank: RenderingBank,
    folder: Path,
    *,
    seed: int,
    settings: VaeSettings | None = None,
    resume: bool = False,
    stop_at: int | None = None,
) -> Any:
    """Trains the AutoencoderKL and sets its scaling factor; checkpoints lie in `folder`."""
    settings = settings or VaeSettings()
    vae = build_vae(seed)
    trainer = Trainer(
        "vae",
        {"vae": vae},
        folder=folder,
        seed=seed,
        steps=settings.steps,
        peak_rate=settings.peak_rate,
        rate=cosine_rate,
    )
    if resume:
        trainer.resume()
    trainer.run(
        lambda generator: vae_loss(vae, bank.draw(settings.batch, generator), settings, generator),
        stop_at=stop_at,
    )
    _set_scaling_factor(vae, bank.images[:, 0])
    return vae


def vae_loss(vae: Any, pixels: Tensor, settings: VaeSettings, generator: torch.Generator) -> Tensor:
    """Reconstruction, hue and prior terms.

    Plain pixel errors let red, orange and yellow merge, so differences between colour channels
    count separately; objects cover a fifth of the image, so their pixels weigh more.

    Args:
        pixels: float32 [B, 3, 64, 64] in [-1, 1].

    Returns: float32 [].
    """
    posterior = vae.encode(pixels).latent_dist
    rebuilt = vae.decode(posterior.sample(generator=generator)).sample
    background = torch.tensor(BACKGROUND).view(1, 3, 1, 1) / 127.5 - 1.0
    on_object = (pixels - background).abs().amax(dim=1, keepdim=True) > 0.1
    weight = 1.0 + settings.object_weight * on_object.float()
    error, hue_error = rebuilt - pixels, _chroma(rebuilt) - _chroma(pixels)
    reconstruction = (weight * (error.abs() + error.square())).mean()
    hue = (weight * (hue_error.abs() + hue_error.square())).mean()
    prior = 0.5 * (posterior.mean.square() + posterior.var - 1.0 - posterior.logvar).mean()
    total: Tensor = reconstruction + settings.chroma_weight * hue + settings.kl_weight * prior
    return total


def _chroma(pixels: Tensor) -> Tensor:
    """Differences between neighbouring colour channels: [B, 3, H, W]."""
    return pixels - pixels.roll(1, dims=1)


def _set_scaling_factor(vae: Any, images: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    """Scales latents of real renderings to unit standard deviation, as Stable Diffusion's are."""
    vae.register_to_config(scaling_factor=1.0)
    vae.register_to_config(scaling_factor=1.0 / float(encode(vae, images).std()))


def reconstruction_psnr(vae: Any) -> float:
    """Peak signal-to-noise ratio in dB over one fresh drawing of each training caption."""
    images = render_bank(training_captions(), 1, _CHECK_SEED).images[:, 0]
    rebuilt = decode(vae, encode(vae, images))
    error = (to_pixels(rebuilt) - to_pixels(images)).div(2.0).square().mean()
    return float(-10.0 * torch.log10(error))
