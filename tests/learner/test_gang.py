"""Several learner workers: together they take the steps of one, and the death of one is the learner's."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from learner.gang import Gang
from raydense.config import Config
from raydense.core.interfaces import GroupsLost, LearnerDied
from raydense.diffusion.policy import Policy

Start = Callable[..., Any]
UNCLIPPED = {"max_grad_norm": 1e9}


def test_alone_nothing_is_waited_for() -> None:
    gang, value = Gang(), torch.ones(3)
    gang.add_up([value])
    assert value.tolist() == [1.0, 1.0, 1.0]
    assert gang.agree(lambda: 7) == 7
    with pytest.raises(GroupsLost, match="gone"):
        gang.agree(lost)


def lost() -> None:
    raise GroupsLost("gone")


@pytest.fixture
def groups(make_policy: Callable[..., Policy], make_groups: Callable[..., Any], small_config: Any) -> Any:
    """On Ray, of the small configuration's shapes."""
    import ray

    return [ray.put(group) for group in make_groups(make_policy(num_steps=4), count=5, keep=3)]


@pytest.fixture
def start(ray_cluster: None) -> Iterator[Start]:
    """Starts a learner of so many workers, which is stopped at the end: start(config, workers)."""
    from learner.ray_learner import RayLearner

    started: list[Any] = []

    def begin(config: Config, workers: int, factory: Any = None) -> Any:
        made = factory or partial(with_gradient, config)
        started.append(RayLearner(made, num_cpus=0.5, num_gpus=0, workers=workers, timeout_s=60.0))
        return started[-1].started()

    yield begin
    for learner in started:
        learner.shutdown()


def with_gradient(config: Config, fetch: Any, gang: Gang) -> Any:
    """The real learner, whose state shows its last gradient instead of its optimizer."""
    from raydense.build import build_learner

    learner = build_learner(config, fetch, gang)
    whole = learner.state_dict

    def state_dict() -> dict[str, Any]:
        return {**whole(), "optimizer": [p.grad.numpy().copy() for p in learner._policy.parameters()]}

    learner.state_dict = state_dict  # type: ignore[method-assign]
    return learner


@pytest.mark.ray
def test_workers_take_the_step_of_one(start: Start, groups: Any, small_config: Any) -> None:
    config = small_config(train=UNCLIPPED, steps={"exclude_last": 2})  # METHOD §9: they multiply float32's noise
    found = {}
    for workers in (1, 3):  # three share four tuples unequally
        learner = start(config, workers)
        learner.begin_stage(0, groups)
        (row,) = learner.train(1)
        state = learner.state_dict()
        found[workers] = row.values, np.concatenate([g.ravel() for g in state["optimizer"]]), state["references"]
        learner.train(2)
        assert learner.weights().version == 3  # and it has compared all workers' checksums
    values, gradient, references = found.pop(1)
    for other_values, other_gradient, other_references in found.values():
        assert np.linalg.norm(other_gradient - gradient) <= 1e-5 * np.linalg.norm(gradient)
        assert {n: pytest.approx(v, rel=1e-4, abs=1e-5) for n, v in values.items() if n != "logit_std"} == {
            n: v
            for n, v in other_values.items()
            if n != "logit_std"  # of a part each, averaged
        }
        known, other = references["log_probs"], other_references["log_probs"]
        assert torch.equal(known.isnan(), other.isnan())  # rank 0 knows what the others computed
        torch.testing.assert_close(known, other, equal_nan=True, rtol=1e-5, atol=1e-5)


@pytest.mark.ray
def test_a_dead_worker_is_the_learners_death_and_new_ones_go_on_from_a_checkpoint(
    start: Start, groups: Any, small_config: Any
) -> None:
    import ray

    from raydense.build import build_learner

    learner = start(small_config(), 2, partial(build_learner, small_config()))
    learner.begin_stage(0, groups)
    learner.train(1)
    state = learner.state_dict()
    learner.train(3)
    expected = learner.weights()
    pid = ray.get(learner._actors[1].__ray_call__.remote(lambda actor: os.getpid()))
    psutil.Process(pid).kill()
    began = time.monotonic()
    with pytest.raises(LearnerDied):
        learner.train(5)
    assert time.monotonic() - began < 30  # not the exchange's time-out, which is 60 s
    learner.started().load_state_dict(state)
    learner.begin_stage(0, groups)
    learner.train(3)
    assert learner.weights().checksum == expected.checksum


def fake_learner_factory() -> Callable[..., Any]:
    """A learner whose weights are its rank, and which cannot read its groups if that is 1; workers get it by value."""

    class FakeLearner:
        def __init__(self, fetch: Any, gang: Any) -> None:
            self._gang = gang

        def weights(self) -> Any:
            from raydense.core.types import PolicyWeights

            return PolicyWeights.of(0, {"rank": np.full(1, self._gang.rank, np.float32)})

        def train(self, num_steps: int) -> Any:
            return self._gang.agree(self._fetch)

        def _fetch(self) -> list[int]:
            from raydense.core.interfaces import GroupsLost

            if self._gang.rank == 1:
                raise GroupsLost("gone with their node")
            return [7]

    return FakeLearner


@pytest.mark.ray
def test_workers_agree_on_lost_groups_and_differing_weights_are_found_out(start: Start, small_config: Any) -> None:
    learner = start(small_config(), 2, fake_learner_factory())
    for _ in range(2):  # nobody is left waiting
        with pytest.raises(GroupsLost):
            learner.train(1)
    with pytest.raises(RuntimeError, match="the learner's workers differ: weights"):
        learner.weights()
