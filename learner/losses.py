"""The dense-reward preference loss, as pure functions (METHOD §4; Yang et al. 2024, eq. 8–11).

Shapes: B tuples, n trajectories a tuple, S step draws. All float32 unless said.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import combinations

import torch
from torch import Tensor

from raydense.core.ranking import reward_order
from raydense.diffusion.transfers import to_device

IMPOSSIBLE = -1e30  # a log-probability; finite, so that its gradient is 0 and no NaN


def step_weights(drawn: range, gamma: float) -> Tensor:
    """P(t) = γ^t / Σ γ^t' over the steps that are drawn, 0 before them: float64 [end of the range]."""
    weights = torch.tensor(gamma, dtype=torch.float64) ** torch.arange(drawn.stop)
    weights[: drawn.start] = 0
    return weights / weights.sum()


def clipped_log_ratio(log_prob: Tensor, reference_log_prob: Tensor, clip: float | Tensor) -> Tensor:
    """ρ = clamp(log π_θ − log π_ref, ±δ); its gradient is 0 where it is clipped. Args: clip: for all, or for each."""
    return torch.clamp(log_prob - reference_log_prob, -clip, clip)  # type: ignore[arg-type]  # both numbers, or both not


def balancing_weights(sensitivity: Tensor, probabilities: Tensor) -> Tensor:
    """1 / sensitivity² by denoising step, with a mean of 1 over the steps as the loss draws them: float32 [T].

    Args: sensitivity [T]: |∂mean / ∂output| / σ. probabilities [T'], of the first T' ≤ T steps.
    """
    drawn = torch.nn.functional.pad(probabilities, (0, len(sensitivity) - len(probabilities)))
    weights = torch.where(drawn > 0, sensitivity.double() ** -2, 0.0)
    return (weights / (drawn * weights).sum()).float()


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
    _check_shapes(logits=logits, rewards=rewards, tie_noise=tie_noise)
    ordered = logits.gather(-1, reward_order(rewards, tie_noise))
    remaining = ordered.flip(-1).logcumsumexp(-1).flip(-1)  # logsumexp over what is not yet placed
    return (remaining - ordered).sum(dim=-1)


def marginal_plackett_luce_loss(logits: Tensor, rewards: Tensor) -> Tensor:
    """Negative log-likelihood of a reward order with ties: summed over the orders that it leaves open (METHOD §4).

    A tuple is placed from the best on. What is placed is a set of trajectories, written as the bits of a number; each
    set's probability comes from those with one trajectory less, so that n! orders cost 2^n sets. What is worst is never
    placed: its order is certain if it is one trajectory, and unknown if several tie. So all-equal rewards cost 0, and
    their gradient is 0 exactly.

    Args:
        logits: [B, n], as in `plackett_luce_loss`, which this is, to rounding, where no reward is equal to another.
        rewards: [B, n]; only their order matters.

    Returns: [B], one loss a tuple; the caller averages over the batch.
    Raises: ValueError if shapes differ or n < 2.
    """
    _check_shapes(logits=logits, rewards=rewards)
    n, device = logits.shape[1], logits.device
    bits = 1 << torch.arange(n, device=device)
    placed = torch.arange(2**n, device=device)[:, None]
    inside = placed & bits != 0  # [2^n, n]
    better = ((rewards[:, None, :] > rewards[:, :, None]) * bits).sum(-1)  # [B, n]: the set of those better than k
    too_early = better[:, None] & ~placed != 0  # [B, 2^n, n]
    left = logits[:, None].masked_fill(inside, IMPOSSIBLE).logsumexp(-1)
    log_next = (logits[:, None] - left[..., None]).masked_fill(inside | too_early, IMPOSSIBLE)  # [B, 2^n, n]
    log_placed = logits.new_zeros(len(logits), 2**n)
    for after, before, last in _sets_by_size(n, device):
        ways = log_placed[:, before] + log_next[:, before, last]
        log_placed = log_placed.index_copy(1, after, ways.logsumexp(-1))
    not_worst = ((rewards > rewards.amin(-1, keepdim=True)) * bits).sum(-1)
    return -log_placed.gather(-1, not_worst[:, None])[:, 0]


@lru_cache
def _sets_by_size(n: int, device: torch.device) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each size below n: all sets of it, what they were before their last member came, and who that was.

    Shapes [sets], [sets, size], [sets, size].
    """
    tables = []
    for size in range(1, n):
        last = torch.tensor(list(combinations(range(n), size)))
        after = (1 << last).sum(-1)
        before = after[:, None] - (1 << last)
        tables.append((to_device(after, device), to_device(before, device), to_device(last, device)))
    return tables


def loss_scale(elements: int, tuples: int, c: float) -> float:
    """A power of two with which the gradient at the network's output is about 1, for a network in float16.

    That of a mean log-density is 1 / elements (of a latent), C times that under the loss, and a batch's loss is the
    mean over its tuples.
    """
    return math.ldexp(1.0, round(math.log2(elements * tuples / c)))


def have_ties(rewards: Tensor) -> Tensor:
    """Which tuples have two equal rewards: [B, n] → bool [B]."""
    ascending = rewards.sort(dim=-1).values
    return (ascending[:, 1:] == ascending[:, :-1]).any(dim=-1)


def pair_accuracy(logits: Tensor, rewards: Tensor) -> Tensor:
    """Share of a tuple's pairs of unequal reward whose logits agree with it: [B, n] → [B].

    0.5 for equal logits, and for a tuple without such a pair.
    """
    better = (rewards[:, :, None] > rewards[:, None, :]).float()
    gap = logits[:, :, None] - logits[:, None, :]
    agree = (gap > 0).float() + 0.5 * (gap == 0).float()
    pairs = better.sum((1, 2))
    return torch.where(pairs > 0, (agree * better).sum((1, 2)) / pairs, 0.5)


def _check_shapes(**tensors: Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"shapes differ: {', '.join(f'{name} {shape}' for name, shape in shapes.items())}")
    if len(shapes["logits"]) != 2 or shapes["logits"][1] < 2:
        raise ValueError(f"logits must be [B, n] with n >= 2, got {shapes['logits']}")
