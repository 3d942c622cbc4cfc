"""What a gradient step learns from: transitions, or noised pictures, copied out of trajectory groups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.batching import BatchDraws
from learner.rivals import group_advantages
from raydense.core.types import TrajectoryGroup
from raydense.diffusion.noising import NoiseLevels
from raydense.diffusion.policy import Policy
from raydense.diffusion.transfers import to_device
from raydense.families.conditioning import Conditioning, each


@dataclass(frozen=True)
class Batch:
    """B tuples of n trajectories with S draws each; what several draws share is there once (U)."""

    plan: BatchDraws  # always on the CPU
    places: NDArray[np.int64]  # [B, n, S], where each draw is; on the CPU
    draws: Tensor  # int64 [B, n, S], the same on the device
    x_t: Tensor  # [U, C, H, W], what the network is given; of transitions in the storage dtype
    t: Tensor  # int64 [U], index of the denoising step, or of the noise level
    row: Tensor  # int64 [U], of the tuple whose prompt it has
    conditioning: Conditioning  # of B rows
    rewards: Tensor  # float32 [B, n]
    tie_noise: Tensor  # float32 [B, n]

    def __len__(self) -> int:
        return len(self.plan)

    def given(self, which: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor, Conditioning]:
        """What the policy takes: x_t, t and the conditioning of some, in rows that belong together."""
        row = self.row[which]
        return self.x_t[which], self.t[which], each(self.conditioning, lambda tensor: tensor[row])

    def to(self, device: torch.device) -> Self:
        """The same batch on a device; nothing waits for the copies."""
        if device.type == "cpu":
            return self

        def there(value: Tensor) -> Tensor:
            return to_device(value, device)

        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {name: there(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **moved, conditioning=each(self.conditioning, there))


@dataclass(frozen=True)
class TransitionBatch(Batch):
    """Steps of the chain as they were taken."""

    x_next: Tensor  # [U, C, H, W]
    old_log_probs: Tensor  # float32 [B, n, S]
    advantages: Tensor  # float32 [B, n], by the rewards of the whole group


@dataclass(frozen=True)
class NoisedBatch(Batch):
    """Final latents under new noise, as in pre-training."""

    target: Tensor  # float32 [U, C, H, W], what the network is to predict


def gather_transitions(plan: BatchDraws, groups: Sequence[TrajectoryGroup]) -> TransitionBatch:
    """Copies the drawn transitions out of the groups (`groups[i]` belongs to row i of the plan).

    The groups' arrays may be views into shared memory: they are read, never written.
    """
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
        **_of_tuples(plan, groups),
        places=places,
        draws=torch.from_numpy(places),
        x_t=_stack(groups[r].state(i, s) for r, i, s in once),
        x_next=_stack(groups[r].state(i, s + 1) for r, i, s in once),
        t=torch.from_numpy(step),
        row=torch.from_numpy(row),
        old_log_probs=_stack(g.log_probs[np.ix_(i, s)] for g, i, s in rows),
        advantages=_stack(group_advantages(g.rewards)[i] for g, i, _ in rows),
    )


def gather_noised(plan: BatchDraws, groups: Sequence[TrajectoryGroup], levels: NoiseLevels) -> NoisedBatch:
    """Noises the final latents of the drawn trajectories: all of a tuple alike, a draw each (args as above).

    The plan's steps are noise levels, and it has noise.
    """
    assert plan.noise is not None
    shape = (*plan.trajectories.shape, plan.steps.shape[1])
    row, k, draw = (index.reshape(-1) for index in np.indices(shape))
    clean = _stack(groups[r].final(i) for r, i in zip(row, plan.trajectories.numpy()[row, k], strict=True))
    noise, level = plan.noise[row, draw], plan.steps[row, draw]
    places = np.arange(len(row)).reshape(shape)
    return NoisedBatch(
        **_of_tuples(plan, groups),
        places=places,
        draws=torch.from_numpy(places),
        x_t=levels.noised(clean, noise, level),
        target=levels.target(clean, noise, level),
        t=level,
        row=torch.from_numpy(row),
    )


def transition_log_probs(policy: Policy, batch: TransitionBatch, which: Tensor | slice = slice(None)) -> Tensor:
    """log π(x_{t+1} | x_t) of some of the batch's transitions under the policy as it is now: float32 [transitions]."""
    x_t, t, conditioning = batch.given(which)
    return policy.log_prob(x_t, batch.x_next[which], t, conditioning)


def _of_tuples(plan: BatchDraws, groups: Sequence[TrajectoryGroup]) -> dict[str, Any]:
    return {
        "plan": plan,
        "conditioning": {name: _stack(g.conditioning[name] for g in groups) for name in groups[0].conditioning},
        "rewards": _stack(g.rewards[i] for g, i in zip(groups, plan.trajectories.numpy(), strict=True)),
        "tie_noise": plan.tie_noise,
    }


def _stack(arrays: Iterable[NDArray[Any]]) -> Tensor:
    return torch.from_numpy(np.stack(list(arrays)))
