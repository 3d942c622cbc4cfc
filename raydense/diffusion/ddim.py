"""The one transition kernel: DDIM with η > 0, where every step is Gaussian (METHOD §3; Song et al. 2021, eq. 12).

Sampling and re-scoring both go through `transition`, so that they cannot drift apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raydense.diffusion.schedulers import settle_chain


@dataclass(frozen=True)
class DDIMSchedule:
    """Constants of a T-step chain; index t = 0 is the first, noisiest step."""

    timesteps: Tensor  # int64 [T], what the U-Net is conditioned on
    alpha: Tensor  # float32 [T], ᾱ_t
    alpha_prev: Tensor  # float32 [T], ᾱ of the next, less noisy state
    sigma: Tensor  # float32 [T], standard deviation of the step
    prediction_type: str

    @property
    def num_steps(self) -> int:
        return len(self.timesteps)

    def to(self, device: torch.device) -> DDIMSchedule:
        timesteps, alpha, alpha_prev, sigma = (
            x.to(device) for x in (self.timesteps, self.alpha, self.alpha_prev, self.sigma)
        )
        return DDIMSchedule(timesteps, alpha, alpha_prev, sigma, self.prediction_type)


def make_schedule(
    scheduler_config: Mapping[str, Any], num_steps: int, eta: float, spacing: str | None = None
) -> DDIMSchedule:
    """Builds the constants from a pipeline's scheduler config, whichever scheduler it was written for.

    Args and raises: as `settle_chain`, which leaves no step without a density.
    """
    chain = settle_chain(scheduler_config, num_steps, spacing)
    alpha, alpha_prev = chain.alpha, chain.alpha_prev
    sigma = eta * ((1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev)).sqrt()
    return DDIMSchedule(
        chain.timesteps, alpha.float(), alpha_prev.float(), sigma.float(), chain.arguments["prediction_type"]
    )


def transition(schedule: DDIMSchedule, x_t: Tensor, model_output: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and standard deviation of π(x_{t+1} | x_t), and the predicted clean latents.

    Args:
        x_t: [N, C, H, W], any float dtype (computed in float32).
        model_output: [N, C, H, W], the (guided) network output in the schedule's prediction type.
        t: int64 [N], step indices.
    Returns: mean float32 [N, C, H, W], sigma float32 [N, 1, 1, 1], x̂0 float32 [N, C, H, W].
    """
    x, output = x_t.float(), model_output.float()
    alpha, alpha_prev, sigma = (
        v[t][:, None, None, None] for v in (schedule.alpha, schedule.alpha_prev, schedule.sigma)
    )
    sqrt_alpha, sqrt_beta = alpha.sqrt(), (1 - alpha).sqrt()
    if schedule.prediction_type == "epsilon":
        epsilon = output
        x0 = (x - sqrt_beta * epsilon) / sqrt_alpha
    elif schedule.prediction_type == "v_prediction":
        epsilon = sqrt_alpha * output + sqrt_beta * x
        x0 = sqrt_alpha * x - sqrt_beta * output
    else:
        x0 = output
        epsilon = (x - sqrt_alpha * x0) / sqrt_beta
    mean = alpha_prev.sqrt() * x0 + (1 - alpha_prev - sigma**2).clamp(min=0).sqrt() * epsilon
    return mean, sigma, x0


def gaussian_log_prob(x_next: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """log N(x_next; mean, σ² I), the *mean* over C, H, W (METHOD §3): float32 [N]."""
    z = (x_next.float() - mean) / sigma
    log_density = -0.5 * z**2 - sigma.log() - 0.5 * math.log(2 * math.pi)
    return log_density.mean(dim=(1, 2, 3))
