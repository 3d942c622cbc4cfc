"""Orders by reward: which trajectories of a group are kept, and in which order a loss sees them."""

from __future__ import annotations

from torch import Tensor


def rank_positions(rolled_out: int, keep: int) -> list[int]:
    """Positions of the ascending reward order that are kept: floor(linspace(0, R−1, K)) (METHOD §5)."""
    return [i * (rolled_out - 1) // (keep - 1) for i in range(keep)]


def reward_order(rewards: Tensor, tie_noise: Tensor) -> Tensor:
    """Indices of the trajectories, best first, ties broken by `tie_noise` (both [B, n]): int64 [B, n]."""
    by_noise = tie_noise.argsort(dim=-1, descending=True)
    by_reward = rewards.gather(-1, by_noise).argsort(dim=-1, descending=True, stable=True)
    return by_noise.gather(-1, by_reward)
