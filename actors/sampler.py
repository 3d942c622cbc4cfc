"""The sampler: the denoising chain with the current LoRA, scores, and the K of R trajectories that are kept.

Called from two threads, it draws the noise of one unit, embeds its prompts, scores it and copies it from the device
while another is denoised.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor

from actors.image_statistics import image_statistics
from actors.judges import Judges
from raydense.core.finite import all_finite
from raydense.core.interfaces import NonFiniteError, Scorer
from raydense.core.memory import memory_advice
from raydense.core.ranking import rank_positions
from raydense.core.seeding import generator
from raydense.core.threads import cpu_threads
from raydense.core.types import (
    FloatArray,
    GroupMeta,
    PolicyWeights,
    Rendered,
    RenderUnit,
    TrajectoryGroup,
    UnitReport,
    WorkUnit,
    stored_states,
)
from raydense.diffusion.kernel import Schedule, gaussian_log_prob
from raydense.diffusion.policy import Policy
from raydense.diffusion.proof import prove_effect
from raydense.diffusion.transfers import to_cpu, to_device
from raydense.families.conditioning import Conditioning, each, stacked

EMBEDDINGS = 64  # prompts whose embeddings stay on the device


@torch.no_grad()
def rollout(
    policy: Policy,
    noise: Tensor,
    conditioning: Conditioning,
    storage_dtype: torch.dtype,
    schedule: Schedule | None = None,
) -> tuple[Tensor, Tensor]:
    """Runs the T-step chain from pre-drawn noise.

    Each state is rounded to the storage dtype *before* it is scored and fed on: the rounded value is the state.

    Args:
        noise: float32 [N, T+1, C, H, W]; index 0 is x_0, index t+1 the noise of step t.
        conditioning: of N rows.
        schedule: None: the policy's.
    Returns: latents [N, T+1, C, H, W] in the storage dtype, log-probs float32 [N, T], 0 of a step without a density.
    """
    count, schedule = len(noise), schedule or policy.schedule
    states, log_probs = [noise[:, 0].to(storage_dtype)], []
    conditioning = each(conditioning, lambda tensor: tensor.to(policy.dtype))  # once, instead of in every call
    for step, noisy in enumerate(schedule.noisy):
        t = torch.full((count,), step, device=noise.device)
        mean, sigma, _ = policy.transition(states[-1], t, conditioning, schedule)
        drawn = mean + sigma * noise[:, step + 1] if noisy else mean
        states.append(drawn.to(storage_dtype))
        log_probs.append(gaussian_log_prob(states[-1], mean, sigma) if noisy else mean.new_zeros(count))
    return torch.stack(states, dim=1), torch.stack(log_probs, dim=1)


def denoise(
    policy: Policy,
    noise: Tensor,
    conditioning: Conditioning,
    storage_dtype: torch.dtype,
    schedule: Schedule | None = None,
) -> tuple[Tensor, Tensor, np.ndarray]:
    """The chain and its pictures, for which the CPU waits until the device has done all of it.

    Args: as of `rollout`.
    Returns: latents and log-probs as of `rollout`, images uint8 [N, h, w, 3].
    Raises: NonFiniteError naming the network, and the step where it is the one that is trained.
    """
    latents, log_probs = rollout(policy, noise, conditioning, storage_dtype, schedule)
    finite = all_finite(latents) & all_finite(log_probs)  # one flag a unit: a look at every step would wait for each
    try:
        return latents, log_probs, policy.decode(latents[:, -1])
    finally:  # what the decoder says of such latents is a consequence
        if not finite:
            called = policy.family.layout.called
            raise NonFiniteError(_first_non_finite(called, conditioning, latents, log_probs))


def _first_non_finite(denoiser: str, conditioning: Conditioning, latents: Tensor, log_probs: Tensor) -> str:
    """Which network began it, and when."""
    if not all(map(all_finite, conditioning.values())):
        return "non-finite embeddings (text encoder)"
    states = torch.isfinite(latents[:, 1:]).flatten(2).all(dim=2) & torch.isfinite(log_probs)  # [N, T]
    step = int((~states).any(dim=0).nonzero()[0])
    return (
        f"non-finite latents ({denoiser}, step t = {step} of T = {states.shape[1]}); a LoRA may have diverged, or the "
        "dtype be too small for the network: try sampler.dtype=bfloat16 or float32"
    )


class DiffusionSampler:
    """Turns work units into trajectory groups, and render units into pictures.

    Args:
        policy: with its decoder.
        scorer: the training reward.
        monitors: further judges, logged only.
        run_seed: of the run; with the unit's indices it decides every draw.
        trajectories, keep: R and K.
        drawn: steps that are learned from, which decides what is stored; None: all.
        shared_noise: whether all trajectories of a group start from one x_0.
        storage_dtype: of the states.
        threads: torch CPU threads.
        name: shown in telemetry.
    """

    def __init__(
        self,
        policy: Policy,
        scorer: Scorer,
        monitors: Sequence[Scorer],
        *,
        run_seed: int,
        trajectories: int,
        keep: int,
        drawn: range | None = None,
        shared_noise: bool,
        storage_dtype: torch.dtype,
        threads: int,
        name: str = "local",
    ) -> None:
        self._policy, self._reward, self._judges = policy, scorer.name, Judges(scorer, monitors)
        self._run_seed, self._trajectories, self._keep = run_seed, trajectories, keep
        steps = policy.schedule.num_steps
        self._drawn = range(steps) if drawn is None else drawn
        self._stored = stored_states(self._drawn, steps)
        self._shared_noise, self._latent_shape = shared_noise, policy.family.latent_shape
        self._storage_dtype, self._threads, self._name = storage_dtype, threads, name
        self._embed = lru_cache(EMBEDDINGS)(policy.encode)
        self._bound = ""
        self._proved: set[str] = set()  # checksums of weights whose effect was seen
        self._embedding, self._denoising, self._judging = (threading.Lock() for _ in range(3))
        self._beside: torch.cuda.Stream | None = None
        if policy.device.type == "cuda":
            self._beside = torch.cuda.Stream(policy.device)  # type: ignore[no-untyped-call]

    def __repr__(self) -> str:
        return f"Sampler({self._policy.about})"

    def sample(self, unit: WorkUnit, weights: PolicyWeights) -> tuple[UnitReport, list[TrajectoryGroup]]:
        """Rolls out R trajectories of each prompt in one batch, scores all, keeps K of each."""
        damage = self._judges.damage
        noise = self._pinned(torch.cat([self._group_noise(unit.stage, index) for index in unit.group_indices]))
        embeds = self._embedded(unit.prompts)
        with self._alone(self._denoising):
            self._bind(weights, unit.weights_version)
            started = time.perf_counter()
            rows = each(embeds, lambda tensor: tensor.repeat_interleave(self._trajectories, dim=0))
            latents, log_probs, images = self._draw(noise, rows, self._policy.schedule)
            denoised = time.perf_counter()
        with self._alone(self._judging), torch.cuda.stream(self._beside):
            began = time.perf_counter()
            prompts = [prompt for prompt in unit.prompts for _ in range(self._trajectories)]
            verdict = self._judges.judge(images, prompts, damage, unit.scales)
            scored = time.perf_counter()
            latents, log_probs, *tensors = to_cpu([latents, log_probs, *embeds.values()])
            own = [each(dict(zip(embeds, tensors, strict=True)), itemgetter(i)) for i in range(len(unit.prompts))]
            pieces = [
                self._make_group(unit, i, own[i], latents, log_probs, images, verdict.scores, weights)
                for i in range(len(unit.prompts))
            ]
        seconds = {"denoise": denoised - started, "score": scored - began}
        metas = tuple(meta for meta, _ in pieces)
        return UnitReport(unit, metas, seconds, self._name, verdict.failures), [group for _, group in pieces]

    def render(self, unit: RenderUnit, weights: PolicyWeights) -> Rendered:
        """Draws one picture a (prompt, seed); the same seed gives the same noise whatever the weights."""
        damage = self._judges.damage
        draws = [generator(self._run_seed, "render", seed) for seed in unit.seeds]
        schedule = self._policy.evaluated
        noise = self._pinned(torch.stack([self._noise(one, schedule.num_steps) for one in draws]))
        embeds = self._embedded(unit.prompts)
        with self._alone(self._denoising):
            self._bind(weights, unit.weights_version)
            _, _, images = self._draw(noise, embeds, schedule)
        with self._alone(self._judging), torch.cuda.stream(self._beside):
            verdict = self._judges.judge(images, unit.prompts, damage)
        kept = images.copy()  # out of pinned memory: whoever asked may hold a thousand pictures
        return Rendered(kept, verdict.scores, verdict.failures)

    def _embedded(self, prompts: Sequence[str]) -> Conditioning:
        """A row a prompt; made while the unit before is denoised."""
        with self._alone(self._embedding):
            return stacked([self._embed(prompt) for prompt in prompts])

    @contextmanager
    def _alone(self, part: threading.Lock) -> Iterator[None]:
        """One unit at a time in each part of the work."""
        with part, cpu_threads(self._threads):
            yield

    def _draw(self, noise: Tensor, conditioning: Conditioning, schedule: Schedule) -> tuple[Tensor, Tensor, np.ndarray]:
        """Latents, log-probs, and pictures. Raises: NonFiniteError, DeviceMemoryError."""
        with memory_advice("lower sampler.unit_prompts or sampler.decode_batch, or set a 16-bit sampler.dtype"):
            there = to_device(noise, self._policy.device)
            return denoise(self._policy, there, conditioning, self._storage_dtype, schedule)

    def _bind(self, weights: PolicyWeights, version: int) -> None:
        if weights.version != version:
            raise ValueError(f"the unit names weights version {version}, but version {weights.version} came with it")
        if self._bound != weights.checksum:
            self._bound = ""  # what is live has no name until this has gone well
            self._policy.bind(weights)
            if weights.steps > 0 and weights.checksum not in self._proved and _add_something(weights):
                probe = torch.randn((1, *self._latent_shape), generator=generator(0, "probe"))
                prove_effect(self._policy, probe.to(self._policy.device), self._embedded(["a photo"]))
                self._proved.add(weights.checksum)
            self._bound = weights.checksum

    def _pinned(self, noise: Tensor) -> Tensor:
        """Drawn while the unit before is denoised, it is copied to a GPU without a wait for it."""
        return noise.pin_memory() if self._policy.device.type == "cuda" else noise

    def _noise(self, draws: torch.Generator, steps: int) -> Tensor:
        shape = (steps + 1, *self._latent_shape)
        return torch.randn(shape, generator=draws, dtype=torch.float32)

    def _group_noise(self, stage: int, group: int) -> Tensor:
        """Noise of one group, float32 [R, T+1, C, H, W]; drawn on the CPU whatever the device."""
        own = [generator(self._run_seed, "rollout", stage, group, k) for k in range(self._trajectories)]
        noise = torch.stack([self._noise(draws, self._policy.schedule.num_steps) for draws in own])
        if self._shared_noise:
            noise[:, 0] = noise[0, 0].clone()
        return noise

    def _make_group(
        self,
        unit: WorkUnit,
        i: int,
        embeds: Conditioning,
        latents: Tensor,
        log_probs: Tensor,
        images: np.ndarray,
        scores: Mapping[str, FloatArray],
        weights: PolicyWeights,
    ) -> tuple[GroupMeta, TrajectoryGroup]:
        rows = slice(i * self._trajectories, (i + 1) * self._trajectories)
        rewards = scores[self._reward][rows]
        ascending = np.argsort(rewards, kind="stable")
        kept = torch.from_numpy(ascending[rank_positions(self._trajectories, self._keep)])
        group = TrajectoryGroup(
            stage=unit.stage,
            index=unit.group_indices[i],
            prompt=unit.prompts[i],
            conditioning={name: embeds[name].numpy().copy() for name in sorted(embeds)},
            latents=latents[rows][kept][:, self._stored].numpy(),
            log_probs=log_probs[rows][kept].numpy(),
            rewards=rewards[kept.numpy()],
            weights_version=weights.version,
            weights_checksum=weights.checksum,
            first_step=self._drawn.start,
        )
        meta = GroupMeta(
            stage=group.stage,
            index=group.index,
            prompt=group.prompt,
            rewards=tuple(map(float, rewards)),
            monitors={n: tuple(map(float, values[rows])) for n, values in scores.items() if n != self._reward},
            nbytes=group.nbytes,
            weights_version=group.weights_version,
            weights_checksum=group.weights_checksum,
            images=image_statistics(images[rows]),
        )
        return meta, group


def _add_something(weights: PolicyWeights) -> bool:
    """Whether a B is other than 0, as it is not before the first gradient, and with ties alone there is none."""
    return any(array.any() for name, array in weights.tensors.items() if ".lora_B." in name)
