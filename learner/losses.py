"""The dense-reward preference loss, as pure functions (METHOD §4; Yang et al. 2024, eq. 8–11).

Shapes: B tuples, n trajectories a tuple, S step draws. All float32 unless said.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raydense.core.ranking import reward_order


def step_weights(num_steps: int, gamma: float, exclude_last: int = 0) -> Tensor:
    """P(t) = γ^t / Σ γ^t' over the first T − exclude_last steps: float64 [T − exclude_last]."""
    weights = torch.tensor(gamma, dtype=torch.float64) ** torch.arange(num_steps - exclude_last)
    return weights / weights.sum()


def clipped_log_ratio(log_prob: Tensor, reference_log_prob: Tensor, clip: float) -> Tensor:
    """ρ = clamp(log π_θ − log π_ref, ±δ); its gradient is 0 where it is clipped."""
    return (log_prob - reference_log_prob).clamp(-clip, clip)


def trajectory_logits(ratios: Tensor, c: float) -> Tensor:
    """z_k = C · mean over the drawn steps of ρ: [B, n, S] → [B, n]."""
    return c * ratios.mean(dim=-1)


def plackett_luce_loss(logits: Tensor, rewards: Tensor, tie_noise: Tensor) -> Tensor:
    """Negative log-likelihood of the reward order under a Plackett–Luce model (ListMLE).

    Args:
        logits: [B, n], C · mean log-ratio of each trajectory (METHOD §4, z_k).
        rewards: [B, n]; only their order matters.
        tie_noise: [B, n], breaks ties; drawn by the caller from the run's generator.

    Returns: [B], one loss a tuple; the caller averages over the batch.
    Raises: ValueError if shapes differ or n < 2.
    """
    if logits.shape != rewards.shape or logits.shape != tie_noise.shape:
        raise ValueError(f"shapes differ: logits {logits.shape}, rewards {rewards.shape}, tie_noise {tie_noise.shape}")
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"logits must be [B, n] with n >= 2, got {tuple(logits.shape)}")
    ordered = logits.gather(-1, reward_order(rewards, tie_noise))
    remaining = ordered.flip(-1).logcumsumexp(-1).flip(-1)  # logsumexp over what is not yet placed
    return (remaining - ordered).sum(dim=-1)


def pair_accuracy(logits: Tensor, rewards: Tensor) -> Tensor:
    """Share of the pairs of unequal reward whose logits agree with it; 0.5 for equal logits or no such pair. Scalar."""
    better = (rewards[:, :, None] > rewards[:, None, :]).float()
    gap = logits[:, :, None] - logits[:, None, :]
    agree = (gap > 0).float() + 0.5 * (gap == 0).float()
    return (agree * better).sum() / better.sum() if better.any() else torch.tensor(0.5, device=logits.device)
