"""`raydense sample`: pictures of a prompt from several models with the same noise, and the chains that led to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.sampler import denoise
from raydense.config import Config
from raydense.core.seeding import generator
from raydense.core.threads import cpu_threads
from raydense.diffusion.policy import Policy
from raydense.evaluation.candidates import Model
from raydense.families.conditioning import each, repeated
from raydense.pipelines.pipeline_files import PipelineFiles
from raydense.records.grids import fitting, save_grid
from raydense.wiring.devices import resolve_device
from raydense.wiring.policies import build_policy

CHAIN_SHOWN = 12  # steps of a chain in a strip, at most

Pictures = NDArray[np.uint8]


@dataclass(frozen=True)
class Drawing:
    """One prompt by one model: pictures uint8 [m, h, w, 3], and of the first the chain uint8 [S, h, w, 3]."""

    prompt: str
    model: str
    pictures: Pictures
    chain: Pictures


def shown_steps(config: Config) -> list[int]:
    """Indices of the steps in a strip, the first and the last among them. Args: config: resolved."""
    steps = config.evaluate.steps or config.steps.count
    count = min(CHAIN_SHOWN, steps)
    return [round(i * (steps - 1) / max(1, count - 1)) for i in range(count)]


def draw(
    config: Config,
    pipeline: PipelineFiles,
    models: Sequence[Model],
    prompts: Sequence[str],
    images: int,
    *,
    chains: bool,
    progress: Callable[[int, int], None],
) -> list[Drawing]:
    """Draws in this process; picture i has the noise of the i-th picture of an evaluation with this seed.

    Args:
        config: its policy is the models' own; its seed decides the noise.
        pipeline: that config names, as it was read.
        images: of each prompt and model.
        chains: whether to decode x̂0 at the steps of `shown_steps`, of the first picture.
        progress: hears how many drawings of how many are done.
    """
    drawings = []
    device = resolve_device(config.sampler.device, "sampler.device")
    with cpu_threads(config.sampler.threads):
        policy = build_policy(
            config,
            dtype=config.sampler.dtype,
            device=device,
            with_decoder=True,
            merged=not config.sampler.exact,
            files=pipeline,
        )
        noise = _noise(config, policy, images).to(device)
        for model in models:
            policy.bind(model.weights)
            for prompt in prompts:
                drawings.append(_drawing(config, policy, noise, model.name, prompt, chains))
                progress(len(drawings), len(models) * len(prompts))
    return drawings


def _noise(config: Config, policy: Policy, images: int) -> Tensor:
    """As the sampler draws it for fixed seeds: float32 [m, T+1, C, H, W]."""
    shape = (policy.evaluated.num_steps + 1, *policy.family.latent_shape)
    return torch.stack([torch.randn(shape, generator=generator(config.seed, "render", i)) for i in range(images)])


@torch.no_grad()
def _drawing(config: Config, policy: Policy, noise: Tensor, model: str, prompt: str, chains: bool) -> Drawing:
    conditioning = repeated(policy.encode(prompt), len(noise))
    storage, schedule = getattr(torch, config.sampler.storage_dtype), policy.evaluated
    latents, _, pictures = denoise(policy, noise, conditioning, storage, schedule)
    if not chains:
        return Drawing(prompt, model, pictures, pictures[:0])
    chain = []
    for step in shown_steps(config):
        t = torch.full((1,), step, device=noise.device)
        given = each(conditioning, lambda tensor: tensor[:1])
        _, _, x0 = policy.transition(latents[:1, step], t, given, schedule)
        chain.append(policy.decode(x0)[0])
    return Drawing(prompt, model, pictures, np.stack(chain))


def distances(drawing: Drawing) -> list[float]:
    """Mean distance of each picture of the chain from the finished one, of the whole range: 0 to 1."""
    final = drawing.pictures[0].astype(np.float64)
    return [float(np.abs(picture - final).mean() / 255) for picture in drawing.chain]


def save_pictures(path: Path, drawings: Sequence[Drawing]) -> Path:
    """A row a prompt, a block of columns a model. Returns: where the file is."""
    prompts, models = (list(dict.fromkeys(getattr(d, name) for d in drawings)) for name in ("prompt", "model"))
    cells = {(d.prompt, d.model): d.pictures for d in drawings}
    rows = [np.concatenate([cells[prompt, model] for model in models]) for prompt in prompts]
    return _save(path, np.stack(rows), prompts, models)


def save_chains(path: Path, config: Config, drawings: Sequence[Drawing]) -> Path:
    """A row a prompt and model: x̂0 along the chain, then the finished picture. Returns: where the file is."""
    rows = np.stack([np.concatenate([d.chain, d.pictures[:1]]) for d in drawings])
    titles = [f"t = {step}" for step in shown_steps(config)]
    return _save(path, rows, [f"{d.model}: {d.prompt}" for d in drawings], [*titles, "finished"])


def _save(path: Path, images: Pictures, prompts: Sequence[str], titles: Sequence[str]) -> Path:
    height, width, _ = save_grid(path, images, prompts, titles).shape
    return fitting(path, width, height)
