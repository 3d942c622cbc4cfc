"""Batches are drawn one step ahead; that changes when groups are fetched, never what a step sees."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from learner.batch_source import BatchSource
from learner.losses import step_weights
from learner.transitions import NoisedBatch
from raydense.core.replay import ReplayBuffer
from raydense.core.types import TrajectoryGroup
from raydense.diffusion.noising import make_noise_levels

GROUPS, STEPS = 6, 4


def make_group(index: int, stage: int = 0) -> TrajectoryGroup:
    return TrajectoryGroup(
        stage=stage,
        index=index,
        prompt=f"prompt {index}",
        conditioning={"prompt_embeds": np.zeros((2, 3), np.float32)},
        latents=np.full((3, STEPS + 1, 1, 2, 2), index, np.float16),
        log_probs=np.zeros((3, STEPS), np.float32),
        rewards=np.arange(3, dtype=np.float32),
        weights_version=0,
        weights_checksum="",
    )


class Store:
    """Handles are indices; remembers what was fetched, and by which thread."""

    def __init__(self, stage: int = 0) -> None:
        self.groups = [make_group(i, stage) for i in range(GROUPS)]
        self.fetches: list[tuple[str, list[int]]] = []

    def fetch(self, handles: Sequence[int]) -> Sequence[TrajectoryGroup]:
        self.fetches.append((threading.current_thread().name, list(handles)))
        return [self.groups[h] for h in handles]


def make_source(store: Store, **options: Any) -> BatchSource[int]:
    return BatchSource(
        ReplayBuffer(GROUPS),
        store.fetch,
        run_seed=5,
        batch_groups=4,
        step_weights=options.pop("step_weights", step_weights(range(STEPS), 0.9)),
        tuple_size=2,
        tuples=1,
        tuple_choice="random",
        ties="random",
        step_draws=2,
        **{"micro_batch": None, "share": (0, 1), "device": torch.device("cpu"), **options},
    )


def test_a_batch_is_the_same_fetched_ahead_or_not() -> None:
    ahead, alone = make_source(Store()), make_source(Store())
    ahead.begin_stage(0, range(GROUPS))
    in_a_row = [ahead.take(step) for step in range(4)]
    for step in (2, 0, 3):
        alone.begin_stage(0, range(GROUPS))
        fresh = alone.take(step)
        assert torch.equal(fresh.plan.groups, in_a_row[step].plan.groups)
        assert torch.equal(fresh.plan.steps, in_a_row[step].plan.steps)
        ((_, part),), ((_, other),) = fresh.parts, in_a_row[step].parts
        assert torch.equal(part.x_t, other.x_t)


def test_the_next_step_is_fetched_by_another_thread() -> None:
    store = Store()
    source = make_source(store)
    source.begin_stage(0, range(GROUPS))
    source.take(0)
    source.take(1)
    names = [name for name, _ in store.fetches[:2]]
    assert names[0] == threading.current_thread().name
    assert names[1].startswith("prefetch")


def test_pulled_bytes_count_each_group_once_a_stage() -> None:
    store = Store()
    source = make_source(store)
    for stage in (0, 1):
        store.groups = [make_group(i, stage) for i in range(GROUPS)]
        source.begin_stage(stage, range(GROUPS))
        batches = [source.take(10 * stage + step) for step in range(8)]
        drawn = {int(i) for batch in batches for i in batch.plan.groups}
        assert sum(batch.pulled_bytes for batch in batches) == sum(store.groups[i].nbytes for i in drawn)


def test_groups_of_another_stage_are_refused() -> None:
    source = make_source(Store(stage=3))
    source.begin_stage(4, range(GROUPS))
    with pytest.raises(ValueError, match="are not of stage 4"):
        source.take(0)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("micro_batch", [None, 1, 2])
def test_the_workers_parts_are_the_batch(workers: int, micro_batch: int | None) -> None:
    def latents(source: BatchSource[int], most: int = 4) -> dict[int, torch.Tensor]:
        """By row of the plan."""
        source.begin_stage(0, range(GROUPS))
        batch = source.take(0)
        assert len(batch.plan) == 4
        assert all(len(part) <= most for _, part in batch.parts)
        return {
            row: drawn
            for rows, part in batch.parts
            for row, drawn in zip(range(4)[rows], part.x_t[part.draws], strict=True)
        }

    whole = latents(make_source(Store()))
    shares = [
        latents(make_source(Store(), micro_batch=micro_batch, share=(i, workers)), micro_batch or 4)
        for i in range(workers)
    ]
    assert sorted(row for share in shares for row in share) == [0, 1, 2, 3]  # each once
    assert all(torch.equal(drawn, whole[row]) for share in shares for row, drawn in share.items())


@pytest.mark.parametrize("micro_batch", [None, 1, 3])
@pytest.mark.parametrize("workers", [1, 2])
def test_noise_is_the_batchs_own_however_it_is_cut(micro_batch: int | None, workers: int) -> None:
    """Pictures under noise, put together from the parts of all workers, against one part of one worker."""
    levels = make_noise_levels({"num_train_timesteps": 50})

    def take(step: int, **options: Any) -> list[tuple[slice, NoisedBatch]]:
        source = make_source(Store(), levels=levels, step_weights=levels.weights, **options)
        source.begin_stage(0, range(GROUPS))
        return source.take(step).parts  # type: ignore[return-value]

    ((_, whole),) = take(7)
    parts = [part for w in range(workers) for part in take(7, micro_batch=micro_batch, share=(w, workers))]
    assert [rows.start for rows, _ in parts] == sorted(rows.start for rows, _ in parts)
    for name in ("x_t", "target", "t"):
        assert torch.equal(torch.cat([getattr(part, name) for _, part in parts]), getattr(whole, name))
    ((_, other),) = take(8)
    assert not torch.equal(other.plan.noise, whole.plan.noise)  # type: ignore[arg-type]
    flat = whole.plan.noise.flatten(2)  # type: ignore[union-attr]
    assert len(torch.unique(flat.view(-1, flat.shape[-1]), dim=0)) == 4 * 2  # a noise for each draw of each pair
