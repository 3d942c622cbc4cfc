"""Batches out of the replay buffer: drawn, fetched and copied one step ahead of the gradient step that uses them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from learner.batching import BatchDraws, Ties, TupleChoice, draw_batch, step_generator, with_noise
from learner.transitions import Batch, gather_noised, gather_transitions
from raydense.core.replay import ReplayBuffer
from raydense.core.types import TrajectoryGroup
from raydense.diffusion.noising import NoiseLevels

Handle = TypeVar("Handle")


@dataclass(frozen=True)
class DrawnBatch:
    """What one gradient step learns from."""

    plan: BatchDraws  # of all workers together
    parts: Sequence[tuple[slice, Batch]]  # this worker's share: rows of the plan, a micro-batch each
    fingerprints: Mapping[int, int]  # of the groups, by their index in the replay buffer
    pulled_bytes: int  # of groups that no earlier batch of the stage had fetched


class BatchSource(Generic[Handle]):
    """A batch is a function of (run seed, step, the stage's groups); fetching ahead changes when, never what.

    Args:
        replay: over handles of the caller's kind.
        fetch: handles → their groups, in order.
        batch_groups: groups a step.
        step_weights: float64 [T'], step probabilities; with levels, theirs.
        tuple_size, tuples, tuple_choice, ties, step_draws: as in `draw_batch`.
        micro_batch: tuples of a part; None: all of the share.
        share: (i, n): the i-th of n workers, which has the i-th of n slices of every batch.
        device: of the parts.
        levels: of noise that final latents are given; None: the chain's own transitions.
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
        ties: Ties,
        step_draws: int,
        micro_batch: int | None,
        share: tuple[int, int],
        device: torch.device,
        levels: NoiseLevels | None = None,
    ) -> None:
        self._replay, self._fetch, self._run_seed = replay, fetch, run_seed
        self._batch_groups, self._step_weights = batch_groups, step_weights
        self._tuple_choice, self._ties = tuple_choice, ties
        self._sizes = {"tuple_size": tuple_size, "tuples": tuples, "step_draws": step_draws}
        self._micro_batch, self._share, self._device, self._levels = micro_batch, share, device, levels
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
        plan = draw_batch(
            drawn,
            rewards,
            self._step_weights,
            tuple_choice=self._tuple_choice,
            ties=self._ties,
            draws=draws,
            **self._sizes,
        )
        if self._levels is not None:
            plan = with_noise(plan, groups[distinct[0]].latents.shape[2:], self._run_seed, step)
        fingerprints = {i: zlib.crc32(groups[i].log_probs.tobytes()) for i in distinct}
        return DrawnBatch(plan, self._gather(plan, groups), fingerprints, pulled)

    def _gather(self, plan: BatchDraws, groups: Mapping[int, TrajectoryGroup]) -> list[tuple[slice, Batch]]:
        index, count = self._share
        begin, end = index * len(plan) // count, (index + 1) * len(plan) // count
        size = self._micro_batch or end - begin
        parts: list[tuple[slice, Batch]] = []
        for first in range(begin, end, size):
            rows = slice(first, min(first + size, end))
            part = plan.rows(rows.start, rows.stop)
            drawn = [groups[i] for i in part.groups.tolist()]
            batch: Batch = (
                gather_transitions(part, drawn) if self._levels is None else gather_noised(part, drawn, self._levels)
            )
            parts.append((rows, batch.to(self._device)))
        return parts
