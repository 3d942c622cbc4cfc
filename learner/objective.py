"""From stored transitions to the loss: one policy call for all trajectories, step draws and guidance halves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.batching import BatchDraws, Ties
from learner.losses import (
    clipped_log_ratio,
    have_ties,
    marginal_plackett_luce_loss,
    pair_accuracy,
    plackett_luce_loss,
    trajectory_logits,
)
from raydense.core.transfers import to_device
from raydense.core.types import TrajectoryGroup
from raydense.diffusion.policy import Policy
from raydense.families.conditioning import Conditioning, each

DISTANCES, CLIPPED = "distances", "clipped"  # by draw, [B, n, S]: |log-ratio|, and whether it was beyond δ


@dataclass(frozen=True)
class TransitionBatch:
    """B tuples of n trajectories with S step draws each; a transition that several draws share is there once (U)."""

    plan: BatchDraws  # always on the CPU
    places: NDArray[np.int64]  # [B, n, S], which transition each draw is; on the CPU
    draws: Tensor  # int64 [B, n, S], the same on the device
    x_t: Tensor  # [U, C, H, W], storage dtype
    x_next: Tensor  # [U, C, H, W]
    t: Tensor  # int64 [U]
    row: Tensor  # int64 [U], of the tuple whose prompt it has
    conditioning: Conditioning  # of B rows
    old_log_probs: Tensor  # float32 [B, n, S]
    rewards: Tensor  # float32 [B, n]
    tie_noise: Tensor  # float32 [B, n]

    def __len__(self) -> int:
        return len(self.plan)

    def to(self, device: torch.device) -> TransitionBatch:
        """The same batch on a device; nothing waits for the copies."""
        if device.type == "cpu":
            return self

        def there(value: Tensor) -> Tensor:
            return to_device(value, device)

        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {name: there(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **moved, conditioning=each(self.conditioning, there))


def gather_transitions(plan: BatchDraws, groups: Sequence[TrajectoryGroup]) -> TransitionBatch:
    """Copies the drawn transitions out of the groups (`groups[i]` belongs to row i of the plan).

    The groups' arrays may be views into shared memory: they are read, never written.
    """

    def stack(arrays: Iterable[NDArray[Any]]) -> Tensor:
        return torch.from_numpy(np.stack(list(arrays)))

    group, k, t = (index.numpy() for index in plan.index())
    ids = (group * (k.max() + 1) + k) * (t.max() + 1) + t
    _, first, places = np.unique(ids, return_index=True, return_inverse=True)
    places = places.reshape(ids.shape)
    row, trajectory, step = (
        np.broadcast_to(i, ids.shape).flat[first] for i in (np.arange(len(plan))[:, None, None], k, t)
    )
    once = list(zip(row, trajectory, step, strict=True))
    rows = list(zip(groups, plan.trajectories.numpy(), plan.steps.numpy(), strict=True))
    return TransitionBatch(
        plan=plan,
        places=places,
        draws=torch.from_numpy(places),
        x_t=stack(groups[r].state(i, s) for r, i, s in once),
        x_next=stack(groups[r].state(i, s + 1) for r, i, s in once),
        t=torch.from_numpy(step),
        row=torch.from_numpy(row),
        conditioning={name: stack(g.conditioning[name] for g in groups) for name in groups[0].conditioning},
        old_log_probs=stack(g.log_probs[np.ix_(i, s)] for g, i, s in rows),
        rewards=stack(g.rewards[i] for g, i, _ in rows),
        tie_noise=plan.tie_noise,
    )


def transition_log_probs(policy: Policy, batch: TransitionBatch, which: Tensor | slice = slice(None)) -> Tensor:
    """log π(x_{t+1} | x_t) of some of the batch's transitions under the policy as it is now: float32 [transitions]."""
    row = batch.row[which]
    conditioning = each(batch.conditioning, lambda tensor: tensor[row])
    return policy.log_prob(batch.x_t[which], batch.x_next[which], batch.t[which], conditioning)


def preference_loss(
    policy: Policy,
    batch: TransitionBatch,
    references: Sequence[Tensor],
    *,
    c: float,
    clip: float | Tensor,
    ties: Ties,
    balance: Tensor | None = None,
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """The dense-reward preference loss of METHOD §4, a value a tuple.

    Args:
        references: log π_I, log π_old or both, float32 [B, n, S] each; with both, the two clipped ratios are added.
            None of them (warm-up): the bare log π_θ, which is not clipped.
        c, clip: C and δ, of all denoising steps or float32 [T].
        balance: float32 [T], by which a step's clipped log-ratio is weighed; None: by 1.
        ties: what equal rewards are to the loss; without any, it is the same to the last bit.
    Returns: loss float32 [B], and what `batch_metrics` takes: detached, [B, ...] each.
    """
    log_probs, step = transition_log_probs(policy, batch)[batch.draws], batch.t[batch.draws]
    clip = clip[step] if isinstance(clip, Tensor) else clip
    ratios = (
        torch.stack([clipped_log_ratio(log_probs, r, clip) for r in references]).sum(0) if references else log_probs
    )
    logits = trajectory_logits(ratios if balance is None else ratios * balance[step], c)
    loss, tied = plackett_luce_loss(logits, batch.rewards, batch.tie_noise), have_ties(batch.rewards)
    if ties == "marginal":
        loss = torch.where(tied, marginal_plackett_luce_loss(logits, batch.rewards), loss)
    with torch.no_grad():
        to_references = [log_probs - r for r in references] or [torch.zeros_like(log_probs)]
        each_distance = torch.stack(to_references, dim=1).abs()  # [B, references, n, S]
        beyond = each_distance > (clip[:, None] if isinstance(clip, Tensor) else clip)
        distances = each_distance.flatten(1)
        values = {
            DISTANCES: each_distance.amax(1),
            CLIPPED: beyond.any(1).float(),
            "loss": loss.detach(),
            "pair_accuracy": pair_accuracy(logits, batch.rewards),
            "log_ratio/clip_fraction": beyond.flatten(1).float().mean(1),
            "log_ratio/abs_mean": distances.mean(1),
            "log_ratio/abs_max": distances.amax(1),
            # drift from π_old; at a stage's first step, where θ is π_old, the noise of re-scoring
            "log_ratio/old_abs_mean": (log_probs - batch.old_log_probs).abs().flatten(1).mean(1),
            "logit_std": logits.detach(),  # [B, n]
            "reward/gap": batch.rewards.amax(-1) - batch.rewards.amin(-1),
            "reward/ties": tied.float(),  # tuples with equal rewards
        }
    return loss, values


def batch_metrics(values: Mapping[str, NDArray[np.float32]]) -> dict[str, float]:
    """Means over a batch's tuples, but for the largest ratio and the spread of the logits. Args: [B, ...] each."""
    by_draw = (DISTANCES, CLIPPED)
    means = {name: float(array.mean(dtype=np.float64)) for name, array in values.items() if name not in by_draw}
    largest = float(values["log_ratio/abs_max"].max())
    spread = float(values["logit_std"].std(ddof=1, dtype=np.float64))
    return {**means, "log_ratio/abs_max": largest, "logit_std": spread}
