"""How far rounding moves a log-ratio: in the policy's own dtype against float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from raydense.core.seeding import derive_seed
from raydense.core.types import PolicyWeights
from raydense.diffusion.policy import Policy

EARLY = 1e-5  # standard deviation of B after a few gradient steps


@torch.no_grad()
def log_ratios(policy: Policy, *transitions: Any) -> tuple[Tensor, Tensor]:
    """ρ = log π_θ − log π_I as the policy computes it, and in float32: [N] each. Takes four calls of N rows.

    Args: transitions: as of `Policy.log_prob`.
    """

    def compute() -> Tensor:
        tuned = policy.log_prob(*transitions)
        with policy.reference():
            return tuned - policy.log_prob(*transitions)

    own = compute()
    with policy.in_float32():
        return own, compute()


def drifted(policy: Policy, scale: float = EARLY) -> PolicyWeights:
    """The policy's weights with noise of this standard deviation added to B, as training would leave them."""
    draws = np.random.default_rng(derive_seed(0, "drift"))
    weights = policy.weights()
    tensors = {
        name: array + scale * draws.standard_normal(array.shape).astype(np.float32) * (".lora_B." in name)
        for name, array in weights.tensors.items()
    }
    return PolicyWeights.of(weights.version, {name: array.astype(np.float32) for name, array in tensors.items()})
