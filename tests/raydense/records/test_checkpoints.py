"""The checkpoints of a run: how many are kept, and which one a run continues from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydense.config import Config
from raydense.core.types import PolicyWeights, Position
from raydense.records.checkpoint_files import Checkpoint
from raydense.records.checkpoints import CheckpointStore
from raydense.records.run_dir import RunDirectory


def checkpoint(stages: int, steps: int = 0) -> Checkpoint:
    weights = PolicyWeights.of(stages, {"a": np.full(2, stages, np.float32)})
    optimizer: dict[str, Any] = {"state": {}, "param_groups": []}
    learner = {"step": 10 * stages + steps, "skipped": 0, "weights": weights, "optimizer": optimizer, "references": {}}
    return Checkpoint(learner, Position(stages, steps), weights if steps else None, 0)


def names(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir())


def refuse(line: str) -> None:
    raise AssertionError(line)


def test_names_order_as_positions_do() -> None:
    positions = [Position(0), Position(0, 9), Position(0, 10), Position(1), Position(1, 2), Position(10)]
    assert sorted(positions) == positions
    assert sorted(p.name for p in positions) == [p.name for p in positions]


def test_only_the_last_ones_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=2)
    for stages, steps in ((0, 0), (0, 3), (1, 0), (1, 3)):
        store.save(checkpoint(stages, steps))
    assert names(tmp_path) == ["stage-0001", "stage-0001-step-000003"]


def test_the_best_boundary_and_the_one_continued_from_are_kept_too(tmp_path: Path) -> None:
    CheckpointStore(tmp_path, keep_last=9).save(checkpoint(0))
    store = CheckpointStore(tmp_path, keep_last=1)
    assert store.latest(refuse) is not None
    for stages, reward in ((1, 0.2), (2, 0.9), (3, 0.1), (4, 0.3)):
        store.save(checkpoint(stages))
        store.note_reward(stages, reward)
    assert names(tmp_path) == ["stage-0000", "stage-0002", "stage-0004"]


def test_a_run_that_continues_knows_its_best_boundary_from_its_metrics(
    small_config: Callable[..., Config], tmp_path: Path
) -> None:
    config = small_config(stage={"count": 5}, checkpoint={"keep_last": 1})
    run_dir = RunDirectory.create(tmp_path / "run", config)
    rows = [{"kind": "stage", "stage": stage, "reward/mean": reward} for stage, reward in enumerate((0.2, 0.9, 0.1))]
    run_dir.metrics.write_text("".join(json.dumps(row) + "\n" for row in ({"kind": "step", "loss": 1.0}, *rows)))
    for stages in range(4):
        CheckpointStore(run_dir.checkpoints, keep_last=9).save(checkpoint(stages))
    store = CheckpointStore.of_run(run_dir, config)
    assert store.latest(refuse) is not None
    store.note_reward(3, 0.3)
    store.save(checkpoint(4))
    store.save(checkpoint(5))
    assert names(run_dir.checkpoints) == ["stage-0001", "stage-0003", "stage-0005"]  # best, continued from, last


@pytest.mark.parametrize(("held", "best"), [(1, "stage-0002"), (2, "stage-0001")])
def test_an_overlapped_stage_is_worth_what_the_boundary_before_it_is(held: int, best: str, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=1, held=held)
    for stages, reward in ((0, 0.1), (1, 0.2), (2, 0.9), (3, 0.3)):
        store.save(checkpoint(stages))
        store.note_reward(stages, reward)
    store.save(checkpoint(4))
    assert best in names(tmp_path)


def test_a_run_continues_from_the_newest_sound_one(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=9)
    assert store.latest(refuse) is None
    for stages, steps in ((0, 0), (1, 0), (1, 2)):
        store.save(checkpoint(stages, steps))
    (tmp_path / "stage-0002.partial").mkdir()  # of a run that was killed while writing
    newest = store.latest(refuse)
    assert newest is not None and newest.position == Position(1, 2)

    (tmp_path / "stage-0001-step-000002" / "behaviour.safetensors").unlink()
    warnings: list[str] = []
    before_it = store.latest(warnings.append)
    assert before_it is not None and before_it.position == Position(1, 0)
    assert len(warnings) == 1
    assert "behaviour.safetensors: is missing or damaged" in warnings[0]
