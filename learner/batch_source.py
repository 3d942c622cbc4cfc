"""Batches out of the replay buffer: drawn, fetched and copied one step ahead of the gradient step that uses them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from learner.batching import BatchPlan, TupleChoice, plan_batch, step_generator
from learner.objective import TransitionBatch, gather_transitions
from raydense.core.replay import ReplayBuffer
from raydense.core.types import TrajectoryGroup

Handle = TypeVar("Handle")


@dataclass(frozen=True)
class DrawnBatch:
    """What one gradient step learns from."""

    plan: BatchPlan
    transitions: TransitionBatch
    pulled_bytes: int  # of groups that no earlier batch of the stage had fetched


class BatchSource(Generic[Handle]):
    """A batch is a function of (run seed, step, the stage's groups); fetching ahead changes when, never what.

    Args:
        replay: over handles of the caller's kind.
        fetch: handles → their groups, in order.
        batch_groups: groups a step.
        step_weights: float64 [T'], step probabilities.
        tuple_size, tuples, tuple_choice, step_draws: as in `plan_batch`.
    """

    def __init__(
        self,
        replay: ReplayBuffer[Handle],
        fetch: Callable[[Sequence[Handle]], Sequence[TrajectoryGroup]],
        *,
        run_seed: int,
        batch_groups: int,
        step_weights: Tensor,
        tuple_size: int,
        tuples: int,
        tuple_choice: TupleChoice,
        step_draws: int,
    ) -> None:
        self._replay, self._fetch, self._run_seed = replay, fetch, run_seed
        self._batch_groups, self._step_weights, self._tuple_choice = batch_groups, step_weights, tuple_choice
        self._sizes = {"tuple_size": tuple_size, "tuples": tuples, "step_draws": step_draws}
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._ahead: tuple[int, Future[DrawnBatch]] | None = None
        self._seen: set[int] = set()
        self._stage = -1

    def begin_stage(self, stage: int, groups: Sequence[Handle]) -> None:
        """Replaces the replay buffer's content; groups are fetched when a batch draws them."""
        if self._ahead is not None:
            self._ahead[1].exception()  # the last stage's surplus batch: wait until it reads no more
            self._ahead = None
        self._stage, self._seen = stage, set()
        self._replay.replace(groups)

    def take(self, step: int) -> DrawnBatch:
        """The batch of this step; that of the next one is being fetched when this returns."""
        ahead = self._ahead
        batch = ahead[1].result() if ahead is not None and ahead[0] == step else self._draw(step)
        self._ahead = (step + 1, self._worker.submit(self._draw, step + 1))
        return batch

    def _draw(self, step: int) -> DrawnBatch:
        draws = step_generator(self._run_seed, step)
        drawn = self._replay.draw(self._batch_groups, draws)
        distinct = sorted(set(drawn.tolist()))
        groups = dict(zip(distinct, self._fetch([self._replay[i] for i in distinct]), strict=True))
        if stale := [g.index for g in groups.values() if g.stage != self._stage]:
            raise ValueError(f"groups {stale} in the replay buffer are not of stage {self._stage}")
        pulled = sum(groups[i].nbytes for i in distinct if i not in self._seen)
        self._seen.update(distinct)
        rewards = torch.stack([torch.tensor(groups[i].rewards) for i in drawn.tolist()])
        plan = plan_batch(
            drawn, rewards, self._step_weights, tuple_choice=self._tuple_choice, draws=draws, **self._sizes
        )
        return DrawnBatch(plan, gather_transitions(plan, [groups[i] for i in plan.groups.tolist()]), pulled)
