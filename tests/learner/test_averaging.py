"""θ averaged over the steps: as a slow sum has it, of the steps that were taken, and part of a learner's state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learner.averaging import MovingAverage
from learner.sgd_learner import SGDLearner
from raydense.core.types import PolicyWeights, Position, TrajectoryGroup, averaged_version, steps_of
from raydense.diffusion.policy import Policy
from raydense.records.checkpoint_files import Checkpoint, load_checkpoint, save_checkpoint

Learner = SGDLearner[TrajectoryGroup]


def slow_average(states: list[np.ndarray], decay: float) -> np.ndarray:
    """Σ decay^(t − i) θ_i / Σ decay^(t − i), term by term."""
    shares = [decay ** (len(states) - 1 - i) for i in range(len(states))]
    terms = [share * state.astype(np.float64) for share, state in zip(shares, states, strict=True)]
    average: np.ndarray = np.sum(terms, axis=0) / sum(shares)
    return average


@pytest.mark.parametrize("decay", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("steps", [1, 2, 64])
def test_it_is_the_slow_sum_whatever_the_length_of_the_run(decay: float, steps: int) -> None:
    draws = np.random.default_rng(0)
    states = [draws.standard_normal((4, 3)).astype(np.float32) for _ in range(steps + 1)]
    parameters = {"a": torch.from_numpy(states[0].copy()), "b": torch.zeros(2)}
    average = MovingAverage(parameters, decay)
    for state in states[1:]:
        parameters["a"].copy_(torch.from_numpy(state))
        average.update()
    found = average.weights(steps).tensors
    assert found["a"].dtype == np.float32
    np.testing.assert_allclose(found["a"], slow_average(states[1:], decay), rtol=1e-5, atol=1e-6)
    assert not found["b"].any()


def test_before_the_first_step_it_is_what_training_begins_with_and_then_the_first_step() -> None:
    theta = torch.tensor([1.0, 2.0])
    average = MovingAverage({"a": theta}, 0.99)
    theta.copy_(torch.tensor([5.0, 0.1]))
    assert average.weights(0).tensors["a"].tolist() == [1.0, 2.0]
    average.update()
    assert average.weights(1).tensors["a"].tobytes() == theta.numpy().tobytes()


def test_its_versions_are_no_version_of_theta_and_know_their_steps() -> None:
    averaged = [averaged_version(steps) for steps in range(100)]
    assert len({*averaged, -1, *range(100)}) == 201  # -1 is of a policy that holds no whole version
    assert [steps_of(version) for version in averaged] == [steps_of(version) for version in range(100)] == [*range(100)]
    assert PolicyWeights.of(averaged_version(7), {}).steps == 7


@pytest.fixture
def begin(
    make_policy: Callable[..., Policy], make_learner: Callable[..., Learner], groups: list[TrajectoryGroup]
) -> Callable[..., Learner]:
    def start(**changes: Any) -> Learner:
        learner = make_learner(make_policy(), **changes)
        learner.begin_stage(0, groups)
        return learner

    return start


@pytest.fixture(scope="module")
def groups(make_policy: Callable[..., Policy], make_groups: Callable[..., Any]) -> list[TrajectoryGroup]:
    found: list[TrajectoryGroup] = make_groups(make_policy(), count=5, keep=3)
    return found


def test_a_learner_averages_what_its_steps_gave_and_leaves_theta_alone(begin: Callable[..., Learner]) -> None:
    learner, plain = begin(ema=0.7), begin()
    states = []
    for step in range(4):
        averaged = learner.averaged()
        assert averaged is not None
        assert averaged.version == averaged_version(step)
        (row,), (expected,) = learner.train(1), plain.train(1)
        assert row == expected
        states.append(learner.weights())
    assert learner.weights().checksum == plain.weights().checksum
    assert plain.averaged() is None
    averaged = learner.averaged()
    assert averaged is not None
    for name, array in averaged.tensors.items():
        slow = slow_average([state.tensors[name] for state in states], 0.7)
        np.testing.assert_allclose(array, slow, rtol=1e-5, atol=1e-7, err_msg=name)
    assert PolicyWeights.of(averaged.version, averaged.tensors).checksum == averaged.checksum != states[-1].checksum


def listed(learner: Learner) -> dict[str, Any]:
    """The average's state."""
    return {name: tensor.tolist() for name, tensor in learner.state_dict()["average"].items()}


def test_a_step_that_was_skipped_leaves_it(begin: Callable[..., Learner], groups: list[TrajectoryGroup]) -> None:
    learner = begin(ema=0.7, to_init=False, to_old=True)
    learner.train(2)
    before, state = learner.averaged(), listed(learner)
    learner.begin_stage(1, [replace(g, stage=1, log_probs=np.full_like(g.log_probs, np.nan)) for g in groups])
    (row,) = learner.train(1)
    after = learner.averaged()
    assert row.values == {"skipped": 1.0}
    assert before is not None
    assert after is not None
    assert after.checksum == before.checksum
    assert (before.steps, after.steps) == (2, 3)
    assert listed(learner) == state


def test_a_learner_restored_from_disk_averages_on_to_the_same_bits(
    begin: Callable[..., Learner], tmp_path: Path
) -> None:
    whole = begin(ema=0.9)
    whole.train(2)
    state = whole.state_dict()
    save_checkpoint(tmp_path / "checkpoint", Checkpoint(state, Position(0, 2), None, 0))
    whole.train(2)
    restored = begin(ema=0.9)
    restored.load_state_dict(load_checkpoint(tmp_path / "checkpoint").learner)
    restored.train(2)
    ours, theirs = restored.averaged(), whole.averaged()
    assert ours is not None
    assert ours == replace(theirs, tensors=ours.tensors)  # version and checksum


def test_a_learner_without_one_writes_none_and_reads_a_checkpoint_without(
    begin: Callable[..., Learner], tmp_path: Path
) -> None:
    learner = begin()
    learner.train(1)
    state = learner.state_dict()
    del state["average"]  # as earlier code had it
    save_checkpoint(tmp_path / "checkpoint", Checkpoint(state, Position(0, 1), None, 0))
    assert not (tmp_path / "checkpoint" / "average.safetensors").exists()
    begin().load_state_dict(load_checkpoint(tmp_path / "checkpoint").learner)
