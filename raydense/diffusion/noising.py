"""The noise levels that a model was trained on: what Diffusion-DPO noises finished pictures with.

x = signal · x0 + noise · ε. A diffusion model's levels are the timesteps of its scheduler, drawn uniformly; those of a
flow are its scheduler's with the shift that this has, drawn logit-normally (Esser et al. 2024): as diffusers' trainers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from raydense.diffusion.flow import is_flow, trained_levels
from raydense.diffusion.schedulers import noise_table


@dataclass(frozen=True)
class NoiseLevels:
    """Constants of N levels; tensors [N], float32 unless said."""

    timesteps: Tensor  # what the network is told of the time: int64, or float32 of a flow
    signal: Tensor
    noise: Tensor
    weights: Tensor  # float64, with which a level is drawn
    prediction_type: str

    def to(self, device: torch.device) -> NoiseLevels:
        tensors: dict[str, Any] = {n: v.to(device) for n, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **tensors)

    def noised(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """float32 [M, C, H, W]. Args: clean, noise [M, C, H, W]; level int64 [M]."""
        signal, amount = self._of(level)
        return signal * clean.float() + amount * noise

    def target(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """What the network was trained to predict, float32 [M, C, H, W]. Args: as of `noised`."""
        signal, amount = self._of(level)
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "v_prediction":
            return signal * noise - amount * clean.float()
        if self.prediction_type == "flow":
            return noise - clean.float()
        return clean.float()

    def _of(self, level: Tensor) -> tuple[Tensor, Tensor]:
        return self.signal[level][:, None, None, None], self.noise[level][:, None, None, None]


def make_noise_levels(scheduler_config: Mapping[str, Any]) -> NoiseLevels:
    """Of a pipeline's scheduler config. Raises: ValueError as `make_schedule`."""
    if is_flow(scheduler_config):
        timesteps, sigmas = trained_levels(scheduler_config)
        count = len(sigmas)
        edges = torch.special.ndtr(torch.logit(torch.arange(count + 1, dtype=torch.float64) / count))
        return NoiseLevels(timesteps, (1 - sigmas).float(), sigmas.float(), edges.diff(), "flow")
    alpha, prediction_type = noise_table(scheduler_config)
    return NoiseLevels(
        torch.arange(len(alpha)),
        alpha.sqrt().float(),
        (1 - alpha).sqrt().float(),
        torch.ones(len(alpha), dtype=torch.float64),
        prediction_type,
    )
