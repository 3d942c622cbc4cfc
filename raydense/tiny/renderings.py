"""Banks of renderings: several drawings of each training caption, as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raydense.tiny.scenes import render_batch

_CHUNK = 64


@dataclass(frozen=True)
class RenderingBank:
    """Drawings of captions.

    images: uint8 [C, N, 64, 64, 3], N drawings of each of C captions.
    captions: the C captions.
    """

    images: npt.NDArray[np.uint8]
    captions: tuple[str, ...]

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        """`batch` random drawings: float32 [batch, 3, 64, 64] in [-1, 1]."""
        flat = self.images.reshape(-1, *self.images.shape[2:])
        picked = torch.randint(len(flat), (batch,), generator=generator)
        return to_pixels(flat[picked.numpy()])


def render_bank(captions: Sequence[str], drawings: int, seed: int) -> RenderingBank:
    """Draws every caption `drawings` times; drawing n of caption c has the seed (seed, c, n)."""
    images = [
        render_batch([caption] * drawings, [(seed, index, n) for n in range(drawings)])
        for index, caption in enumerate(captions)
    ]
    return RenderingBank(np.stack(images), tuple(captions))


def to_pixels(images: npt.NDArray[np.uint8]) -> Tensor:
    """uint8 [B, 64, 64, 3] to float32 [B, 3, 64, 64] in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1.0)


def to_images(pixels: Tensor) -> npt.NDArray[np.uint8]:
    """float32 [B, 3, 64, 64] in [-1, 1] (clipped) to uint8 [B, 64, 64, 3]."""
    scaled = pixels.clamp(-1, 1).add(1.0).mul(127.5).round().to(torch.uint8)
    images: npt.NDArray[np.uint8] = scaled.permute(0, 2, 3, 1).contiguous().numpy()
    return images


@torch.no_grad()
def encode(vae: Any, images: npt.NDArray[np.uint8]) -> Tensor:
    """uint8 [B, 64, 64, 3] to scaled mean latents, float32 [B, 4, 8, 8]."""
    parts = [vae.encode(to_pixels(images[i : i + _CHUNK])).latent_dist.mean for i in range(0, len(images), _CHUNK)]
    latents: Tensor = torch.cat(parts) * vae.config.scaling_factor
    return latents


@torch.no_grad()
def decode(vae: Any, latents: Tensor) -> npt.NDArray[np.uint8]:
    """Scaled latents, float32 [B, 4, 8, 8], to uint8 [B, 64, 64, 3]."""
    parts = [latents[i : i + _CHUNK] / vae.config.scaling_factor for i in range(0, len(latents), _CHUNK)]
    return np.concatenate([to_images(vae.decode(part).sample) for part in parts])
