"""Chains of models that learned a flow: x_σ = (1 − σ) x0 + σ x1, and the network tells the velocity x1 − x0.

Of two consecutive noise levels, σ_t > σ_s, the mean of a step is (1 − σ_s) x̂0 + b x̂1. With Δ = σ_t − σ_s, b and std:

    ode        b = σ_s                        0                   Euler's step
    cps        b = √(σ_s² − std²)             σ_s sin(η π/2)      Wang and Yu 2025: the noise stays on the schedule
    flow-sde   b = σ_s − Δ k² / (2 σ_t)       k √Δ                Liu et al. 2025, k = η √(σ_t / (1 − σ_t))
    dance-sde  as flow-sde                    η √Δ                Xue et al. 2025, k = η
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

ODE, CPS, FLOW_SDE, DANCE_SDE = DYNAMICS = ("ode", "cps", "flow-sde", "dance-sde")
SCHEDULER = "FlowMatchEulerDiscreteScheduler"


@dataclass(frozen=True)
class FlowChain:
    """Where T steps lie; index 0 is the first, noisiest step."""

    timesteps: Tensor  # float32 [T], 1000 σ
    now: Tensor  # float64 [T], σ_t
    next: Tensor  # float64 [T], σ_s; 0 at the end

    def step(self, dynamics: str, eta: Tensor) -> tuple[Tensor, Tensor]:
        """b and the standard deviation, float64 [T] each. Args: eta: [T], 0 where a step is the ODE's."""
        if dynamics == ODE:
            return self.next, torch.zeros_like(self.next)
        if dynamics == CPS:
            std = self.next * torch.sin(eta * math.pi / 2)
            return (self.next**2 - std**2).clamp(min=0).sqrt(), std
        k = eta
        if dynamics == FLOW_SDE:
            from_noise = torch.where(self.now < 1, self.now, self.next)  # alone in the denominator, where 1 − σ is 0
            k = eta * (self.now / (1 - from_noise)).sqrt()
        delta = self.now - self.next
        return self.next - delta * k**2 / (2 * self.now), k * delta.sqrt()


def is_flow(scheduler_config: Mapping[str, Any]) -> bool:
    """Whether a pipeline's scheduler is for a model that learned a flow."""
    return str(scheduler_config.get("_class_name", "")) == SCHEDULER


@dataclass(frozen=True)
class Levels:
    """How a pipeline asks its scheduler for noise levels.

    tokens: that its network makes of a latent, by which a scheduler with dynamic shifting moves them.
    even: whether they are evenly spaced before they are shifted; else the scheduler spaces them.
    """

    tokens: int
    even: bool = False


def flow_chain(scheduler_config: Mapping[str, Any], num_steps: int, levels: Levels) -> FlowChain:
    """The chain of `num_steps` noise levels of the pipeline's own scheduler, as diffusers' pipeline asks for them.

    Raises: ValueError if it inverts its levels or draws noise of its own, in one line.
    """
    scheduler = _scheduler(scheduler_config)
    asked: dict[str, Any] = {"num_inference_steps": num_steps}
    if levels.even:
        asked["sigmas"] = np.linspace(1.0, 1 / num_steps, num_steps)
    if scheduler.config.use_dynamic_shifting:
        asked["mu"] = _shift(scheduler.config, levels.tokens)
    scheduler.set_timesteps(**asked)
    sigmas: Tensor = scheduler.sigmas.double()
    return FlowChain(scheduler.timesteps.float(), sigmas[:-1], sigmas[1:])


def trained_levels(scheduler_config: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Of the scheduler before it is asked for steps: timesteps float32 [N], and σ float64 [N], falling.

    A shift that hangs on the picture's size is none of them. Raises: ValueError as `flow_chain`.
    """
    scheduler = _scheduler(scheduler_config)
    return scheduler.timesteps.float(), scheduler.sigmas.double()


def _scheduler(scheduler_config: Mapping[str, Any]) -> Any:
    """Raises: ValueError as `flow_chain`."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    if not is_flow(scheduler_config):
        name = scheduler_config.get("_class_name")
        raise ValueError(f"the scheduler {name} has no noise levels of a flow; give a pipeline with a {SCHEDULER}")
    for key in ("invert_sigmas", "stochastic_sampling"):
        if scheduler_config.get(key):
            raise ValueError(f"the scheduler's {key}=true cannot be taken over; give a pipeline without it")
    return FlowMatchEulerDiscreteScheduler.from_config(dict(scheduler_config))


def _shift(config: Mapping[str, Any], tokens: int) -> float:
    """Linear in the number of tokens, between the two that the scheduler's file has (diffusers' `calculate_shift`)."""
    first, last = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    slope = (high - low) / (last - first)
    return float(tokens * slope + low - slope * first)
