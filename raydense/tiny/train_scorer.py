"""Contrastive pre-training of the tiny preference scorer on scenes and their near misses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.functional import gaussian_blur

from raydense.tiny.networks import build_clip, build_tokenizer, tokenize
from raydense.tiny.renderings import decode, encode, render_bank, to_pixels
from raydense.tiny.scenes import COLOURS, RELATIONS, SHAPES, Scene, SceneObject, parse, training_captions
from raydense.tiny.training import Trainer, cosine_rate

_BANK_SEED = 4
_MAX_LOGIT_SCALE = 20.0


@dataclass(frozen=True)
class ScorerSettings:
    """Everything but the seed and the autoencoder that decides the scorer's weights."""

    steps: int = 2400
    families: int = 20
    swaps: int = 2
    changes: int = 2
    drawings: int = 12
    peak_rate: float = 1e-3
    latent_noise: float = 0.4
    pixel_noise: float = 0.08


@dataclass(frozen=True)
class ScorerBank:
    """Images of the training captions, sharp and rebuilt by the autoencoder, and the captions' near misses.

    images: uint8 [C, 2 N, 64, 64, 3]; tokens: int64 [C, 16].
    swaps, changes: for each caption the indices of its near misses (`swapped`, `changed`).
    """

    images: npt.NDArray[np.uint8]
    tokens: Tensor
    swaps: tuple[tuple[int, ...], ...]
    changes: tuple[tuple[int, ...], ...]


def swapped(scene: Scene) -> list[Scene]:
    """Scenes with the same words in other places: colours, shapes, order or relation swapped."""
    if scene.second is None:
        return []
    first, second = scene.first, scene.second
    other = RELATIONS[1 - RELATIONS.index(str(scene.relation))]
    candidates = [
        replace(scene, first=replace(first, colour=second.colour), second=replace(second, colour=first.colour)),
        replace(scene, first=replace(first, shape=second.shape), second=replace(second, shape=first.shape)),
        Scene(second, scene.relation, first),
        Scene(first, other, second),
    ]
    return [candidate for candidate in dict.fromkeys(candidates) if candidate != scene]


def changed(scene: Scene) -> list[Scene]:
    """Scenes with one colour or shape replaced, or with one object missing."""
    if scene.second is None:
        return [Scene(item) for item in _varied(scene.first)]
    firsts = [replace(scene, first=item) for item in _varied(scene.first) if item.colour != scene.second.colour]
    seconds = [replace(scene, second=item) for item in _varied(scene.second) if item.colour != scene.first.colour]
    return [*firsts, *seconds, Scene(scene.first), Scene(scene.second)]


def _varied(item: SceneObject) -> list[SceneObject]:
    colours = [replace(item, colour=colour) for colour in COLOURS if colour != item.colour]
    return colours + [replace(item, shape=shape) for shape in SHAPES if shape != item.shape]


def build_bank(vae: Any, settings: ScorerSettings, seed: int) -> ScorerBank:
    """Renders the training captions; half of the images pass through noisy latents, as samples do."""
    captions = training_captions()
    sharp = render_bank(captions, settings.drawings, _BANK_SEED).images
    latents = encode(vae, sharp.reshape(-1, *sharp.shape[2:]))
    generator = torch.Generator().manual_seed(seed)
    strength = settings.latent_noise * torch.rand((len(latents), 1, 1, 1), generator=generator)
    rebuilt = decode(vae, latents + strength * torch.randn(latents.shape, generator=generator)).reshape(sharp.shape)
    index = {caption: position for position, caption in enumerate(captions)}
    scenes = [parse(caption) for caption in captions]
    return ScorerBank(
        np.concatenate([sharp, rebuilt], axis=1),
        tokenize(build_tokenizer(), captions),
        tuple(_known(swapped(scene), index) for scene in scenes),
        tuple(_known(changed(scene), index) for scene in scenes),
    )


def _known(scenes: Sequence[Scene], index: dict[str, int]) -> tuple[int, ...]:
    return tuple(index[scene.caption] for scene in scenes if scene.caption in index)


def train_scorer(
    bank: ScorerBank,
    folder: Path,
    *,
    seed: int,
    settings: ScorerSettings | None = None,
    resume: bool = False,
    stop_at: int | None = None,
) -> Any:
    """Returns the trained CLIPModel; checkpoints lie in `folder`."""
    settings = settings or ScorerSettings()
    scorer = build_clip(build_tokenizer(), seed)
    trainer = Trainer(
        "scorer",
        {"scorer": scorer},
        folder=folder,
        seed=seed,
        steps=settings.steps,
        peak_rate=settings.peak_rate,
        rate=cosine_rate,
    )
    if resume:
        trainer.resume()
    trainer.run(lambda generator: scorer_loss(scorer, bank, settings, generator), stop_at=stop_at)
    return scorer


def scorer_loss(scorer: Any, bank: ScorerBank, settings: ScorerSettings, generator: torch.Generator) -> Tensor:
    """Symmetric contrastive loss over families of a caption and its near misses (float32 []).

    Every member has its own image, so each image meets near-miss captions and each caption meets
    near-miss images; the latter is what ranks samples of one prompt.
    """
    captions = _draw_families(bank, settings, generator)
    drawing = torch.randint(bank.images.shape[1], (len(captions),), generator=generator)
    pixels = to_pixels(bank.images[captions.numpy(), drawing.numpy()])
    output = scorer(input_ids=bank.tokens[captions], pixel_values=_degrade(pixels, settings, generator))
    scale = scorer.logit_scale.exp().clamp(max=_MAX_LOGIT_SCALE)
    logits = scale * output.image_embeds @ output.text_embeds.T
    same = (captions[:, None] == captions[None, :]).float()
    target = same / same.sum(dim=1, keepdim=True)
    return 0.5 * (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target))


def _draw_families(bank: ScorerBank, settings: ScorerSettings, generator: torch.Generator) -> Tensor:
    """int64 [B]: random captions, each followed by some of its near misses."""
    members: list[int] = []
    for caption in torch.randint(len(bank.tokens), (settings.families,), generator=generator).tolist():
        members.append(caption)
        for near_misses, count in (
            (bank.swaps[caption], settings.swaps),
            (bank.changes[caption], settings.changes),
        ):
            order = torch.randperm(len(near_misses), generator=generator)[:count]
            members.extend(near_misses[position] for position in order.tolist())
    return torch.tensor(members)


def _degrade(pixels: Tensor, settings: ScorerSettings, generator: torch.Generator) -> Tensor:
    """Blurs half of the images and adds noise to all, so that content decides and not sharpness."""
    blurred = gaussian_blur(pixels, [5, 5], [1.2, 1.2])
    chosen = torch.rand((len(pixels), 1, 1, 1), generator=generator) < 0.5
    strength = settings.pixel_noise * torch.rand((len(pixels), 1, 1, 1), generator=generator)
    return torch.where(chosen, blurred, pixels) + strength * torch.randn(pixels.shape, generator=generator)


@torch.no_grad()
def cosine_scores(
    scorer: Any, processor: Any, images: npt.NDArray[np.uint8], captions: Sequence[str]
) -> npt.NDArray[np.float32]:
    """The reward: cosine similarity of each image, uint8 [B, 64, 64, 3], and its caption; float32 [B]."""
    pixels = processor.image_processor(images=list(images), return_tensors="pt").pixel_values
    output = scorer(input_ids=tokenize(processor.tokenizer, captions), pixel_values=pixels)
    scores: npt.NDArray[np.float32] = (output.image_embeds * output.text_embeds).sum(dim=-1).numpy()
    return scores
