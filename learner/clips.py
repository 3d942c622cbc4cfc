"""δ by denoising step: where log-ratios are clipped (METHOD §4).

The spread of a log-ratio differs from step to step by orders of magnitude, so that one δ for all clips some steps
always and others never.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raydense.core.types import ByStep, FloatArray
from raydense.diffusion.transfers import to_device

RECENT = 128  # log-ratios of a step that are remembered
ENOUGH = 32  # of a step and its neighbours together, before anything is clipped there


class Clip(Protocol):
    """What a learner asks for δ, and tells what it saw."""

    def now(self) -> float | FloatArray:
        """For all steps, or float32 [T], infinite where nothing is to be clipped."""

    def observe(self, steps: NDArray[np.int64], distances: FloatArray) -> None:
        """After a gradient step. Args: steps [B, S]; |log-ratio| before clipping, [B, n, S]."""

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class FixedClip:
    """One δ for all steps, from the first on."""

    def __init__(self, clip: float) -> None:
        self._clip = clip

    def now(self) -> float:
        return self._clip

    def observe(self, steps: NDArray[np.int64], distances: FloatArray) -> None:
        """Nothing depends on it."""

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """There is none."""


class AutoClip:
    """The δ of a step that a share of its recent log-ratios exceeded.

    A step that is rarely drawn learns from its neighbours: δ is the geometric mean of the three quantiles, by how many
    log-ratios each rests on. A gradient step whose log-ratios are all 0, as the first one's, or not all finite
    tells nothing.

    Args:
        num_steps: T.
        share: of log-ratios that are to be clipped.
        floor: δ is never smaller: three times a log-ratio's noise.
    """

    def __init__(self, num_steps: int, share: float, floor: float) -> None:
        self._share, self._floor = share, floor
        self._recent = np.zeros((num_steps, RECENT), np.float32)
        self._seen = np.zeros(num_steps, np.int64)  # of each step, ever

    def now(self) -> FloatArray:
        held = np.minimum(self._seen, RECENT)
        quantiles = [np.quantile(self._recent[t, :n], 1 - self._share) if n else 0.0 for t, n in enumerate(held)]
        logs = np.log(np.maximum(np.array(quantiles), np.finfo(np.float32).tiny))
        counts, weighted = _with_neighbours(held.astype(float)), _with_neighbours(held * logs)
        clips = np.exp(weighted / np.maximum(counts, 1))
        settled: FloatArray = np.where(counts < ENOUGH, np.inf, np.maximum(clips, self._floor)).astype(np.float32)
        return settled

    def observe(self, steps: NDArray[np.int64], distances: FloatArray) -> None:
        if not (distances.any() and np.isfinite(distances).all()):  # such a step is skipped
            return
        drawn = np.broadcast_to(steps[:, None, :], distances.shape).reshape(-1)
        for step, distance in zip(drawn.tolist(), distances.reshape(-1).tolist(), strict=True):
            self._recent[step, self._seen[step] % RECENT] = distance
            self._seen[step] += 1

    def state_dict(self) -> dict[str, Tensor]:
        return {"recent": torch.from_numpy(self._recent.copy()), "seen": torch.from_numpy(self._seen.copy())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._recent[:], self._seen[:] = state["recent"].numpy(), state["seen"].numpy()


def on_device(delta: float | FloatArray, device: torch.device) -> float | Tensor:
    """δ as a loss takes it; what `Clip.now` gave."""
    return delta if isinstance(delta, float) else to_device(torch.from_numpy(delta), device)


def tell(
    clip: Clip,
    delta: float | FloatArray,
    steps: NDArray[np.int64],
    distances: FloatArray,
    clipped: FloatArray,
    num_steps: int,
) -> ByStep:
    """Tells δ what a gradient step saw.

    Args: delta: as it was then. steps [B, S]; distances, and 1 where one was clipped, [B, n, S]. num_steps: T.
    Returns: of each denoising step how many log-ratios were clipped, and its δ if it has one of its own.
    """
    clip.observe(steps, distances)
    drawn = np.broadcast_to(steps[:, None, :], clipped.shape)
    counts = np.bincount(drawn.reshape(-1), weights=clipped.reshape(-1), minlength=num_steps)
    by_step: dict[str, tuple[float | None, ...]] = {"clipped": tuple(map(int, counts))}
    if not isinstance(delta, float):
        by_step["clip"] = tuple(float(value) if np.isfinite(value) else None for value in delta)
    return by_step


def _with_neighbours(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each value and those beside it, added up."""
    padded = np.pad(values, 1)
    total: NDArray[np.float64] = padded[:-2] + padded[1:-1] + padded[2:]
    return total
