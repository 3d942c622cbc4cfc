"""Which transitions a gradient step sees: group, tuple and step draws, from the run's own generators."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from raydense.core.ranking import rank_positions, reward_order
from raydense.core.seeding import generator

TupleChoice = Literal["random", "best_worst"]
Ties = Literal["marginal", "random"]  # no preference between equal rewards; or one drawn at random, as in the paper


@dataclass(frozen=True)
class BatchDraws:
    """B = groups × tuples_per_group tuples; all trajectories of a tuple share its step draws."""

    groups: Tensor  # int64 [B], indices into the replay buffer
    trajectories: Tensor  # int64 [B, n], indices into the group
    steps: Tensor  # int64 [B, S]; of pictures that are noised, levels of noise
    tie_noise: Tensor  # float32 [B, n]
    noise: Tensor | None = None  # float32 [B, S, C, H, W]; of pictures that are noised

    def __len__(self) -> int:
        return len(self.groups)

    def rows(self, start: int, stop: int) -> BatchDraws:
        part = slice(start, stop)
        noise = None if self.noise is None else self.noise[part]
        return BatchDraws(self.groups[part], self.trajectories[part], self.steps[part], self.tie_noise[part], noise)

    def index(self) -> tuple[Tensor, Tensor, Tensor]:
        """Group, trajectory and step of every draw, which broadcast to [B, n, S]."""
        return self.groups[:, None, None], self.trajectories[:, :, None], self.steps[:, None, :]


def draw_batch(
    drawn_groups: Tensor,
    rewards: Tensor,
    weights: Tensor,
    *,
    tuple_size: int,
    tuples: int,
    tuple_choice: TupleChoice,
    ties: Ties,
    step_draws: int,
    draws: torch.Generator,
) -> BatchDraws:
    """Draws tuples and steps, for each group independently (METHOD §4).

    What is drawn of a group without equal rewards is the same whatever `ties` is.

    Args:
        drawn_groups: int64 [G], from the replay buffer.
        rewards: float32 [G, K], of those groups.
        weights: float64 [T'], step probabilities (`losses.step_weights`), or those of noise levels.
        draws: the step's own generator.
    """
    groups = drawn_groups.repeat_interleave(tuples)
    rewards = rewards.repeat_interleave(tuples, dim=0)
    batch, kept = rewards.shape
    shuffle = torch.rand((batch, kept), generator=draws)
    if tuple_choice == "random":
        order = shuffle.argsort(dim=-1)
        trajectories = first_unequal(order, rewards, tuple_size) if ties == "marginal" else order[:, :tuple_size]
    else:  # evenly spaced by rank, the best and the worst included
        ascending = reward_order(rewards, shuffle).flip(-1)
        trajectories = ascending[:, rank_positions(kept, tuple_size)]
    steps = torch.multinomial(weights, batch * step_draws, replacement=True, generator=draws).view(batch, step_draws)
    return BatchDraws(groups, trajectories, steps, torch.rand((batch, tuple_size), generator=draws))


def first_unequal(order: Tensor, rewards: Tensor, size: int) -> Tensor:
    """The first `size` of each order; if their rewards are all equal, the last makes way for the first other one.

    Args: order: int64 [B, K], of a group's trajectories. rewards: [B, K].
    Returns: int64 [B, size]; equal rewards alone only where a group has no others.
    """
    ordered = rewards.gather(-1, order)
    other = (ordered != ordered[:, :1]).int().argmax(dim=-1)  # the first of them; 0 where there is none
    last = torch.where(other < size, size - 1, other)
    return torch.cat([order[:, : size - 1], order.gather(-1, last[:, None])], dim=-1)


def step_generator(run_seed: int, step: int) -> torch.Generator:
    """The generator of one gradient step's draws."""
    return generator(run_seed, "batch", step)


def with_noise(plan: BatchDraws, latent_shape: tuple[int, ...], run_seed: int, step: int) -> BatchDraws:
    """The plan with noise of its own for each draw, which all trajectories of a tuple share."""
    shape = (*plan.steps.shape, *latent_shape)
    return replace(plan, noise=torch.randn(shape, generator=generator(run_seed, "noise", step)))
