"""What travels between driver, samplers and learner.

Shape legend, used in every file:
    R  trajectories rolled out for a prompt        K  trajectories kept: a trajectory group
    T  denoising steps                             S  step draws of a tuple (N_step)
    B  tuples in a batch                           n  trajectories in a tuple
    C, H, W  latent channels, height, width        L, D  prompt tokens, embedding width
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
Conditioning = Mapping[str, NDArray[Any]]  # what the network is given of a prompt, by names in alphabetical order

Scales = tuple[tuple[str, float, float], ...]  # a mixture's components: name, mean and standard deviation to divide by

RESTORED = "segment"  # the "sampler" of a unit that was read from disk


@dataclass(frozen=True)
class PolicyWeights:
    """The LoRA tensors of one policy version: float32 arrays by name, and a checksum over all of them."""

    version: int  # the gradient steps taken, or `averaged_version` of them
    tensors: Mapping[str, FloatArray]
    checksum: str

    @property
    def steps(self) -> int:
        """Gradient steps taken until then."""
        return steps_of(self.version)

    @staticmethod
    def of(version: int, tensors: Mapping[str, FloatArray]) -> PolicyWeights:
        return PolicyWeights(version, dict(tensors), tensor_checksum(tensors))


def averaged_version(steps: int) -> int:
    """Of the weights averaged over so many steps: θ's own is ≥ 0, so that no work unit takes one for the other."""
    return -2 - steps  # -1 is no version


def steps_of(version: int) -> int:
    """Gradient steps taken until a version of θ, or of its average."""
    return version if version >= 0 else -2 - version


def tensor_checksum(tensors: Mapping[str, FloatArray]) -> str:
    """SHA-256 over names, shapes and bytes, in the order of the names; 16 hex digits."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name}{array.shape}{array.dtype}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class WorkUnit:
    """Prompts to roll out together; what it yields is a function of this, the seed and the weights alone."""

    stage: int
    index: int
    group_indices: tuple[int, ...]  # of the groups within their stage, one a prompt
    prompts: tuple[str, ...]
    weights_version: int
    scales: Scales = ()

    def describe(self, run_seed: int) -> str:
        """The unit as a person would find it again."""
        prompts = ", ".join(map(repr, self.prompts))
        return f"unit {self.index} of stage {self.stage}, run seed {run_seed}, prompts {prompts}"

    @property
    def task(self) -> str:
        """As Ray lists the work on it."""
        return f"sample stage {self.stage} unit {self.index}"


@dataclass(frozen=True)
class RenderUnit:
    """Pictures to draw with fixed seeds: evaluation and image grids."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]  # one a prompt
    weights_version: int

    def describe(self, run_seed: int) -> str:
        """The unit as a person would find it again."""
        return f"pictures {list(self.seeds)}, run seed {run_seed}, prompts {', '.join(map(repr, self.prompts))}"

    @property
    def task(self) -> str:
        """As Ray lists the work on it."""
        which = "weights" if self.weights_version >= 0 else "averaged weights"
        return f"judge {which} {steps_of(self.weights_version)} pictures {self.seeds[0]} to {self.seeds[-1]}"


@dataclass(frozen=True)
class Rendered:
    """What a RenderUnit yields: images uint8 [N, h, w, 3], and scores by scorer name, float32 [N]."""

    images: NDArray[np.uint8]
    scores: Mapping[str, FloatArray]  # NaN where a monitor failed
    failures: Mapping[str, str] = field(default_factory=dict)  # of monitors, by name


def stored_states(drawn: range, num_steps: int) -> list[int]:
    """Indices of the states that are kept: those that a loss on these steps reads, each once, and the final one."""
    return sorted({*range(drawn.start, drawn.stop + 1), num_steps})


@dataclass(frozen=True)
class TrajectoryGroup:
    """K trajectories of one prompt, as they lie in the replay buffer. Its arrays may be read-only views."""

    stage: int
    index: int
    prompt: str
    conditioning: Conditioning  # as the sampler conditioned on it, such as prompt_embeds [L, D]
    latents: NDArray[np.generic]  # [K, states, C, H, W] in the storage dtype: see `stored_states`
    log_probs: FloatArray  # [K, T], log π_old(x_{t+1} | x_t)
    rewards: FloatArray  # [K]
    weights_version: int
    weights_checksum: str
    first_step: int = 0  # of those that can be learned from; its state is the first of the latents

    @property
    def steps(self) -> range:
        """Whose states, before and after, are both here: what can be learned from."""
        count, states = self.log_probs.shape[1], self.latents.shape[1]
        whole = self.first_step + states == count + 1
        return range(self.first_step, count if whole else self.first_step + states - 2)

    def state(self, trajectory: int, index: int) -> NDArray[np.generic]:
        """x_index of a trajectory, [C, H, W]; that of a step's beginning or end."""
        state: NDArray[np.generic] = self.latents[trajectory, index - self.first_step]
        return state

    def final(self, trajectory: int) -> NDArray[np.generic]:
        """x_T of a trajectory, [C, H, W], which is stored whichever steps are."""
        state: NDArray[np.generic] = self.latents[trajectory, -1]
        return state

    @property
    def nbytes(self) -> int:
        arrays = (self.latents, self.log_probs, self.rewards, *self.conditioning.values())
        return sum(array.nbytes for array in arrays)


@dataclass(frozen=True)
class GroupMeta:
    """What the driver knows of a group without fetching it."""

    stage: int
    index: int
    prompt: str
    rewards: tuple[float, ...]  # of all R trajectories, in the order they were rolled out
    monitors: Mapping[str, tuple[float, ...]]  # same order; NaN where one failed
    nbytes: int
    weights_version: int
    weights_checksum: str
    images: Mapping[str, float] = field(default_factory=dict)  # of all R: `actors.image_statistics`


@dataclass(frozen=True)
class UnitReport:
    """The small, inline part of a sampler's answer to a WorkUnit."""

    unit: WorkUnit
    groups: tuple[GroupMeta, ...]
    seconds: Mapping[str, float] = field(default_factory=dict)  # by phase
    sampler: str = "local"
    failures: Mapping[str, str] = field(default_factory=dict)  # of monitors, by name


@dataclass(frozen=True, order=True)
class Position:
    """How far a run has come: whole stages, and gradient steps of the stage after them."""

    stages: int = 0
    steps: int = 0

    @property
    def name(self) -> str:
        return f"stage-{self.stages:04d}" + (f"-step-{self.steps:06d}" if self.steps else "")


ByStep = Mapping[str, tuple[float | None, ...]]  # values by denoising step, [T] each; None: there is none


@dataclass(frozen=True)
class StepMetrics:
    """Named scalars of one gradient step, and what is told by denoising step; deterministic on the CPU."""

    step: int
    values: Mapping[str, float]
    pulled_bytes: int = field(default=0, compare=False)  # telemetry: of groups not fetched before in this stage
    by_step: ByStep = field(default_factory=dict)
    network_rows: Mapping[str, int] = field(default_factory=dict)  # "forward" alone, and "trained": backward too
