"""From stored transitions to the loss: one policy call for all trajectories, step draws and guidance halves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from learner.batching import BatchPlan
from learner.losses import clipped_log_ratio, pair_accuracy, plackett_luce_loss, trajectory_logits
from raydense.core.policy import Policy
from raydense.core.types import TrajectoryGroup


@dataclass(frozen=True)
class TransitionBatch:
    """B tuples of n trajectories with S drawn transitions each."""

    x_t: Tensor  # [B, n, S, C, H, W], storage dtype
    x_next: Tensor  # [B, n, S, C, H, W]
    steps: Tensor  # int64 [B, S]
    prompt_embeds: Tensor  # [B, L, D]
    old_log_probs: Tensor  # float32 [B, n, S]
    rewards: Tensor  # float32 [B, n]
    tie_noise: Tensor  # float32 [B, n]

    def __len__(self) -> int:
        return len(self.steps)

    def rows(self, start: int, stop: int) -> TransitionBatch:
        return TransitionBatch(*(getattr(self, f.name)[start:stop] for f in fields(self)))

    def to(self, device: torch.device) -> TransitionBatch:
        return TransitionBatch(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))


def gather_transitions(plan: BatchPlan, groups: Sequence[TrajectoryGroup]) -> TransitionBatch:
    """Copies the drawn transitions out of the groups (`groups[i]` belongs to row i of the plan).

    The groups' arrays may be views into shared memory: they are read, never written.
    """

    def stack(arrays: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(arrays))

    rows = list(zip(groups, plan.trajectories.numpy(), plan.steps.numpy(), strict=True))
    return TransitionBatch(
        x_t=stack([g.latents[np.ix_(k, t)] for g, k, t in rows]),
        x_next=stack([g.latents[np.ix_(k, t + 1)] for g, k, t in rows]),
        steps=plan.steps,
        prompt_embeds=stack([g.prompt_embeds for g, _, _ in rows]),
        old_log_probs=stack([g.log_probs[np.ix_(k, t)] for g, k, t in rows]),
        rewards=stack([g.rewards[k] for g, k, _ in rows]),
        tie_noise=plan.tie_noise,
    )


def batch_log_probs(policy: Policy, batch: TransitionBatch) -> Tensor:
    """log π(x_{t+1} | x_t) of every transition under the policy as it is now: float32 [B, n, S]."""
    b, n, s = batch.x_t.shape[:3]
    steps = batch.steps[:, None, :].expand(b, n, s).reshape(-1)
    embeds = batch.prompt_embeds[:, None, None].expand(b, n, s, -1, -1).flatten(0, 2)
    return policy.log_prob(batch.x_t.flatten(0, 2), batch.x_next.flatten(0, 2), steps, embeds).view(b, n, s)


def preference_loss(
    policy: Policy,
    batch: TransitionBatch,
    *,
    c: float,
    clip: float,
    reg_to_pi_init: bool,
    reg_to_pi_old: bool,
    warm_up: bool = False,
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """The dense-reward preference loss of METHOD §4, a value a tuple.

    Args:
        c, clip: C and δ.
        reg_to_pi_init, reg_to_pi_old: which references; with both, the two clipped ratios are added.
        warm_up: leave the references out; the bare log π_θ is then not clipped.
    Returns: loss float32 [B], and detached scalars, each a mean over the batch.
    """
    references: list[Tensor] = []
    if reg_to_pi_init and not warm_up:
        with torch.no_grad(), policy.reference():
            references.append(batch_log_probs(policy, batch))
    if reg_to_pi_old and not warm_up:
        references.append(batch.old_log_probs)
    log_probs = batch_log_probs(policy, batch)
    ratios = (
        torch.stack([clipped_log_ratio(log_probs, r, clip) for r in references]).sum(0) if references else log_probs
    )
    logits = trajectory_logits(ratios, c)
    loss = plackett_luce_loss(logits, batch.rewards, batch.tie_noise)
    with torch.no_grad():
        raw = torch.stack([log_probs - r for r in references]) if references else torch.zeros(1)
        metrics = {
            "loss": loss.mean(),
            "pair_accuracy": pair_accuracy(logits, batch.rewards),
            "log_ratio/clip_fraction": (raw.abs() > clip).float().mean(),
            "log_ratio/abs_mean": raw.abs().mean(),
            "log_ratio/abs_max": raw.abs().max(),
            # drift from π_old; at a stage's first step, where θ is π_old, the noise of re-scoring
            "log_ratio/old_abs_mean": (log_probs - batch.old_log_probs).abs().mean(),
            "logit_std": logits.std(),
            "reward/gap": (batch.rewards.amax(-1) - batch.rewards.amin(-1)).mean(),
        }
    return loss, metrics
