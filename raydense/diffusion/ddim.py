"""The one transition kernel: DDIM with η > 0, where every step is Gaussian (METHOD §3; Song et al. 2021, eq. 12).

Sampling and re-scoring both go through `transition`, so that they cannot drift apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


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


def make_schedule(scheduler_config: Mapping[str, Any], num_steps: int, eta: float) -> DDIMSchedule:
    """Builds the constants from a pipeline's scheduler config, whichever scheduler it was written for.

    Raises: ValueError if T does not fit the scheduler, the prediction type is unknown, or the last σ is 0
        (`steps_offset` 0 or `set_alpha_to_one` true), where log π is undefined.
    """
    options = {"clip_sample": False, "thresholding": False, "timestep_spacing": "leading"}
    scheduler: Any = DDIMScheduler.from_config({**scheduler_config, **options})
    train_steps = scheduler.config.num_train_timesteps
    if not 1 <= num_steps <= train_steps - scheduler.config.steps_offset:
        raise ValueError(f"steps.count={num_steps} does not fit the scheduler's {train_steps} timesteps; lower it")
    if scheduler.config.prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type={scheduler.config.prediction_type} is not one of {PREDICTION_TYPES}")
    scheduler.set_timesteps(num_steps)
    timesteps = scheduler.timesteps.to(torch.int64)
    previous = timesteps - train_steps // num_steps
    table = scheduler.alphas_cumprod.double()
    alpha = table[timesteps]
    alpha_prev = torch.where(previous >= 0, table[previous.clamp(min=0)], scheduler.final_alpha_cumprod.double())
    sigma = eta * ((1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev)).clamp(min=0).sqrt()
    if not bool((sigma > 0).all()):
        raise ValueError(
            f"the scheduler's last σ is 0 at steps.count={num_steps} (steps_offset="
            f"{scheduler.config.steps_offset}, set_alpha_to_one={scheduler.config.set_alpha_to_one}), so log π is "
            "undefined; use a scheduler config with steps_offset 1 and set_alpha_to_one false"
        )
    return DDIMSchedule(timesteps, alpha.float(), alpha_prev.float(), sigma.float(), scheduler.config.prediction_type)


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
