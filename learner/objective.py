"""What gradient steps minimise: the protocol, and the dense-reward preference loss as its first implementation.

A loss is computed in parts, by several workers, and what is measured on the way is added up; so an objective is told
when a step begins, asked for each part's loss, and told what all parts together measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.batching import BatchDraws, Ties
from learner.by_step import BY_DRAW, CLIPPED, DISTANCES, LOG_PROBS, SLOPES, ByStepReader, slopes
from learner.clips import Clip, on_device
from learner.losses import (
    clipped_log_ratio,
    have_ties,
    marginal_plackett_luce_loss,
    pair_accuracy,
    plackett_luce_loss,
    trajectory_logits,
)
from learner.references import ReferenceCache
from learner.transitions import TransitionBatch, transition_log_probs
from raydense.core.types import ByStep
from raydense.diffusion.policy import Policy

Measured = dict[str, NDArray[np.float32]]  # of a whole batch: [B, ...] each

INITIAL = "initial"  # log π_I, [B, n, S]


class Objective(Protocol):
    """What it remembers is the same in all workers, and part of the learner's state."""

    def begin_stage(self, stage: int) -> None: ...

    def begin_step(self, step: int, fingerprints: Mapping[int, int]) -> None:
        """Args: step: gradient steps taken before. fingerprints: of the batch's groups, by their index."""

    def loss(self, part: Any) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Of one micro-batch: float32 [b], a value a tuple, and what is measured: detached, [b, ...] each."""

    def end_step(self, plan: BatchDraws, measured: Measured) -> tuple[dict[str, float], ByStep]:
        """What the whole batch measured becomes metrics, and metrics by denoising step."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class DensePreference:
    """METHOD §4.

    Args:
        references: of log π_I.
        clip, c, ties, balance: as of `preference_loss`.
        to_init, to_old: which references the log-ratios have.
        warm_up_steps: at the beginning, without a reference.
    """

    def __init__(
        self,
        policy: Policy,
        references: ReferenceCache,
        clip: Clip,
        *,
        c: float,
        ties: Ties,
        balance: Tensor | None,
        to_init: bool,
        to_old: bool,
        warm_up_steps: int,
    ) -> None:
        self._policy, self._references, self._clip = policy, references, clip
        self._options: Any = {"c": c, "ties": ties, "balance": balance}
        self._wanted, self._warm_up_steps = (to_init, to_old), warm_up_steps
        self._to_init, self._to_old = self._wanted
        self._by_step = ByStepReader.of(policy)

    def begin_stage(self, stage: int) -> None:
        self._references.begin_stage(stage)

    def begin_step(self, step: int, fingerprints: Mapping[int, int]) -> None:
        self._references.forget_changed(fingerprints)
        self._delta = self._clip.now()
        self._limit = on_device(self._delta, self._policy.device)
        self._to_init, self._to_old = (wanted and step >= self._warm_up_steps for wanted in self._wanted)

    def loss(self, part: TransitionBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        references, measured = [part.old_log_probs] if self._to_old else [], {}
        if self._to_init:
            measured[INITIAL] = known = self._references.look_up(part)
            references.append(known)
        loss, values = preference_loss(self._policy, part, references, clip=self._limit, **self._options)
        return loss, {**values, **measured}

    def end_step(self, plan: BatchDraws, measured: Measured) -> tuple[dict[str, float], ByStep]:
        if INITIAL in measured:
            self._references.remember(plan, measured.pop(INITIAL))
        return batch_metrics(measured), self._by_step.tell(self._clip, self._delta, plan, measured)

    def state_dict(self) -> dict[str, Any]:
        return {"references": self._references.state_dict(), "clip": self._clip.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._references.load_state_dict(state["references"])
        self._clip.load_state_dict(state.get("clip", {}))  # none in a checkpoint of earlier code


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
    loss = _listwise_loss(logits, batch, ties)
    slope = slopes(loss, log_probs)
    with torch.no_grad():
        to_references = [log_probs - r for r in references] or [torch.zeros_like(log_probs)]
        each_distance = torch.stack(to_references, dim=1).abs()  # [B, references, n, S]
        beyond = each_distance > (clip[:, None] if isinstance(clip, Tensor) else clip)
        distances = each_distance.flatten(1)
        values = {
            DISTANCES: each_distance.amax(1),
            CLIPPED: beyond.any(1).float(),
            LOG_PROBS: log_probs.detach(),
            SLOPES: slope,
            "loss": loss.detach(),
            "pair_accuracy": pair_accuracy(logits, batch.rewards),
            "log_ratio/clip_fraction": beyond.flatten(1).float().mean(1),
            "log_ratio/abs_mean": distances.mean(1),
            "log_ratio/abs_max": distances.amax(1),
            # drift from π_old; at a stage's first step, where θ is π_old, the noise of re-scoring
            "log_ratio/old_abs_mean": (log_probs - batch.old_log_probs).abs().flatten(1).mean(1),
            "logit_std": logits.detach(),  # [B, n]
            **reward_metrics(batch.rewards),
        }
    return loss, values


def _listwise_loss(logits: Tensor, batch: TransitionBatch, ties: Ties) -> Tensor:
    """[B, n] → [B]."""
    loss = plackett_luce_loss(logits, batch.rewards, batch.tie_noise)
    if ties != "marginal":
        return loss
    return torch.where(have_ties(batch.rewards), marginal_plackett_luce_loss(logits, batch.rewards), loss)


def reward_metrics(rewards: Tensor) -> dict[str, Tensor]:
    """Of each tuple, whatever is learned from it. Args: rewards [B, n]. Returns: [B] each."""
    return {
        "reward/gap": rewards.amax(-1) - rewards.amin(-1),
        "reward/ties": have_ties(rewards).float(),  # tuples with equal rewards
    }


def batch_metrics(values: Mapping[str, NDArray[np.float32]]) -> dict[str, float]:
    """Means over a batch's tuples, but for largest values and the spread of the logits. Args: [B, ...] each."""
    metrics = {}
    for name, array in values.items():
        if name.endswith("max"):
            metrics[name] = float(array.max())
        elif name == "logit_std":
            metrics[name] = float(array.std(ddof=1, dtype=np.float64))
        elif name not in BY_DRAW:
            metrics[name] = float(array.mean(dtype=np.float64))
    return metrics
