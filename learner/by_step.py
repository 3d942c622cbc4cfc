"""What a gradient step tells of each denoising step, beside what was clipped: log-ratios' spread, and the gradient.

A gradient with respect to the parameters takes a backward pass a denoising step. That with respect to the network's
(guided) output takes none: the slopes of a loss in its log-probabilities are scalars, and log π itself says how far the
next state lies from the mean, which is linear in the output.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.batching import BatchDraws
from learner.clips import Clip, tell
from raydense.core.types import ByStep, FloatArray
from raydense.diffusion.kernel import Schedule
from raydense.diffusion.policy import Policy

DISTANCES, CLIPPED = "distances", "clipped"  # by draw, [B, n, S]: |log-ratio|, and whether it was beyond δ
LOG_PROBS, SLOPES = "log_probs", "slopes"  # by draw: log π_θ, and the slope in it of its tuple's loss
BY_DRAW = (DISTANCES, CLIPPED, LOG_PROBS, SLOPES)


def slopes(loss: Tensor, log_probs: Tensor) -> Tensor:
    """∂ loss / ∂ log π of each draw: [B], [B, n, S] → [B, n, S]. Nothing behind the log-probabilities is computed."""
    (found,) = torch.autograd.grad(loss.sum(), log_probs, retain_graph=True)
    return found


class ByStepReader:
    """Sums up what was measured by draw.

    Args:
        schedule: of the chain that is learned.
        elements: of a latent.
    """

    def __init__(self, schedule: Schedule, elements: int) -> None:
        self._sensitivity = schedule.sensitivity().cpu().numpy().astype(np.float64)
        with np.errstate(divide="ignore"):  # σ is 0 of a step that is never drawn
            self._log_variance = 2 * np.log(schedule.sigma.cpu().numpy().astype(np.float64))
        self._elements = elements

    @classmethod
    def of(cls, policy: Policy) -> ByStepReader:
        return cls(policy.schedule, math.prod(policy.family.latent_shape))

    def tell(
        self, clip: Clip, delta: float | FloatArray, plan: BatchDraws, measured: Mapping[str, FloatArray]
    ) -> ByStep:
        """Tells δ what a whole batch saw, and gives what a row of metrics says by step.

        Args: delta: as it was then. measured: BY_DRAW, [B, n, S] each.
        """
        clipped = tell(clip, delta, plan.steps.numpy(), measured[DISTANCES], measured[CLIPPED], len(self._sensitivity))
        return {**clipped, **self.read(plan, measured)}

    def read(self, plan: BatchDraws, measured: Mapping[str, FloatArray]) -> ByStep:
        """Of a whole batch, root mean squares over the draws of each step: [T] each, None where there is none.

        spread: of its log-ratios, before they are clipped. gradient: of ‖∂ loss / ∂ output‖, where loss is the batch's.
        Args: measured: BY_DRAW, [B, n, S] each.
        """
        distances, log_probs, slope = (measured[name].astype(np.float64) for name in (DISTANCES, LOG_PROBS, SLOPES))
        step = np.broadcast_to(plan.steps.numpy()[:, None, :], slope.shape)
        return {
            "spread": self._means(step, distances**2),
            "gradient": self._means(step, self._gradient_squared(step, log_probs, slope / len(plan))),
        }

    def _gradient_squared(
        self, step: NDArray[np.int64], log_probs: NDArray[np.float64], slope: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """With q = ‖x' − μ‖² / (σ² d) = −2 log π − log 2πσ²: (slope · |∂μ/∂output| / σ)² · q / d."""
        distance = -2 * log_probs - math.log(2 * math.pi) - self._log_variance[step]
        squared: NDArray[np.float64] = (slope * self._sensitivity[step]) ** 2 * distance.clip(min=0) / self._elements
        return squared

    def _means(self, step: NDArray[np.int64], squares: NDArray[np.float64]) -> tuple[float | None, ...]:
        steps = len(self._sensitivity)
        sums, counts = np.bincount(step.flat, squares.flat, steps), np.bincount(step.flat, minlength=steps)
        return tuple(
            _rounded(math.sqrt(total / count)) if count else None
            for total, count in zip(sums.tolist(), counts.tolist(), strict=True)
        )


def _rounded(value: float) -> float | None:
    """Four digits: T numbers a row of metrics need no more. None for what is not finite, as in a step to be skipped."""
    return float(f"{value:.4g}") if math.isfinite(value) else None
