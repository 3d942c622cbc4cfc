"""The one transition kernel: every step is Gaussian around a mixture of what the network takes for picture and noise.

x_t = signal · x̂0 + noise · x̂1, of which the network's output tells x̂0 (the clean latents) and x̂1 (the noise, ε); the
next state has the mean next_signal · x̂0 + next_noise · x̂1. DDIM (METHOD §3; Song et al. 2021, eq. 12) and the samplers
of flow models differ in these constants alone. Sampling and re-scoring both go through `transition`, so that they
cannot drift apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from raydense.diffusion.flow import CPS, Levels, flow_chain
from raydense.diffusion.schedulers import settle_chain

DDIM = "ddim"


@dataclass(frozen=True)
class Schedule:
    """Constants of a T-step chain; index t = 0 is the first, noisiest step. Tensors are float32 [T]."""

    timesteps: Tensor  # [T], what the network is told of the time: int64, or float32 of a flow
    signal: Tensor  # of x_t
    noise: Tensor
    next_signal: Tensor  # of the next state's mean
    next_noise: Tensor
    sigma: Tensor  # standard deviation of the step
    prediction_type: str
    noisy: tuple[bool, ...]  # whether σ > 0, which gives the step a density

    @property
    def num_steps(self) -> int:
        return len(self.noisy)

    def to(self, device: torch.device) -> Schedule:
        tensors: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **tensors)

    def sensitivity(self) -> Tensor:
        """|∂mean / ∂output| / σ of each step, float32 [T]; infinite where σ is 0."""
        steps = torch.arange(self.num_steps, device=self.sigma.device)
        zero = torch.zeros(self.num_steps, 1, 1, 1, device=self.sigma.device)
        mean, sigma, _ = transition(self, zero, zero + 1, steps)  # linear in the output, and 0 of zeros
        return (mean.abs() / sigma).flatten()


def make_schedule(
    scheduler_config: Mapping[str, Any],
    num_steps: int,
    eta: float,
    spacing: str | None = None,
    *,
    dynamics: str = DDIM,
    window: tuple[int, int] | None = None,
    levels: Levels | None = None,
    counted: str = "steps.count",
) -> Schedule:
    """Builds the constants from a pipeline's scheduler config, whichever scheduler it was written for.

    Args:
        num_steps, spacing: as of `settle_chain`. eta: share of the dynamics' noise.
        dynamics: ddim, or one of a flow's.
        window: [a, b), the steps that have noise; the others are the ODE's. None: all.
        levels: as of `flow_chain`; of a flow alone.
        counted: as of `settle_chain`.
    Raises: ValueError as `check_eta`, `settle_chain` and `flow_chain`.
    """
    check_eta(dynamics, eta)
    noisy = [window is None or window[0] <= step < window[1] for step in range(num_steps)]
    etas = torch.tensor([eta if on else 0.0 for on in noisy], dtype=torch.float64)
    if dynamics != DDIM:
        return _flow(scheduler_config, num_steps, etas, dynamics, levels or Levels(tokens=1))
    chain = settle_chain(scheduler_config, num_steps, spacing, counted)
    sigma = etas * ((1 - chain.alpha_prev) / (1 - chain.alpha) * (1 - chain.alpha / chain.alpha_prev)).sqrt()
    alpha, alpha_prev, std = chain.alpha.float(), chain.alpha_prev.float(), sigma.float()
    return Schedule(
        chain.timesteps,
        signal=alpha.sqrt(),
        noise=(1 - alpha).sqrt(),
        next_signal=alpha_prev.sqrt(),
        next_noise=(1 - alpha_prev - std**2).clamp(min=0).sqrt(),
        sigma=std,
        prediction_type=chain.arguments["prediction_type"],
        noisy=tuple((std > 0).tolist()),
    )


def check_eta(dynamics: str, eta: float) -> None:
    """Raises: ValueError if a step would have more noise than the next state, in one line that names the setting."""
    if dynamics in (DDIM, CPS) and eta > 1:
        raise ValueError(f"steps.eta={eta:g} exceeds 1, which {dynamics} cannot have; lower it")


def _flow(scheduler_config: Mapping[str, Any], num_steps: int, etas: Tensor, dynamics: str, levels: Levels) -> Schedule:
    chain = flow_chain(scheduler_config, num_steps, levels)
    next_noise, std = chain.step(dynamics, etas)
    return Schedule(
        chain.timesteps,
        signal=(1 - chain.now).float(),
        noise=chain.now.float(),
        next_signal=(1 - chain.next).float(),
        next_noise=next_noise.float(),
        sigma=std.float(),
        prediction_type="flow",
        noisy=tuple((std > 0).tolist()),
    )


def transition(schedule: Schedule, x_t: Tensor, model_output: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and standard deviation of π(x_{t+1} | x_t), and the predicted clean latents.

    Args:
        x_t: [N, C, H, W], any float dtype (computed in float32).
        model_output: [N, C, H, W], the (guided) network output in the schedule's prediction type.
        t: int64 [N], step indices.
    Returns: mean float32 [N, C, H, W], sigma float32 [N, 1, 1, 1], x̂0 float32 [N, C, H, W].
    """
    x, output = x_t.float(), model_output.float()
    signal, noise, next_signal, next_noise, sigma = (
        v[t][:, None, None, None]
        for v in (schedule.signal, schedule.noise, schedule.next_signal, schedule.next_noise, schedule.sigma)
    )
    if schedule.prediction_type == "epsilon":
        x1 = output
        x0 = (x - noise * x1) / signal
    elif schedule.prediction_type == "v_prediction":
        x1 = signal * output + noise * x
        x0 = signal * x - noise * output
    elif schedule.prediction_type == "flow":
        x1 = x + signal * output
        x0 = x - noise * output
    else:
        x0 = output
        x1 = (x - signal * x0) / noise
    return next_signal * x0 + next_noise * x1, sigma, x0


def gaussian_log_prob(x_next: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """log N(x_next; mean, σ² I), the *mean* over C, H, W (METHOD §3): float32 [N]; no number where σ is 0."""
    z = (x_next.float() - mean) / sigma
    log_density = -0.5 * z**2 - sigma.log() - 0.5 * math.log(2 * math.pi)
    return log_density.mean(dim=(1, 2, 3))
