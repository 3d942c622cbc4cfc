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
from raydense.core.types import averaged_version, tensor_checksum
from raydense.diffusion.policy import Policy

Start = Callable[..., Any]


def test_alone_nothing_is_waited_for() -> None:
    gang, value = Gang(), torch.ones(3)
    gang.add_up([value])
    assert value.tolist() == [1.0, 1.0, 1.0]
    assert gang.agree(lambda: 7) == 7
    with pytest.raises(GroupsLost, match="gone"):
        gang.agree(lost)


def lost() -> None:
    raise GroupsLost("gone")


@pytest.fixture(scope="module")
def config(small_values: dict[str, Any]) -> Config:
    """Three tuples a step, which two workers share unequally, and no clipping."""
    train = {**small_values["train"], "batch_groups": 3, "max_grad_norm": 1e9, "ema": 0.8}
    steps = {**small_values["steps"], "exclude_last": 2}  # METHOD §9: they multiply float32's noise
    return Config.model_validate({**small_values, "train": train, "steps": steps})


@pytest.fixture(scope="module")
def groups(ray_cluster: None, make_policy: Callable[..., Policy], make_groups: Callable[..., Any]) -> Any:
    """On Ray, of the small configuration's shapes."""
    import ray

    return [ray.put(group) for group in make_groups(make_policy(num_steps=4), count=5, keep=3)]


@pytest.fixture(scope="module")
def start(ray_cluster: None) -> Iterator[Start]:
    """Starts a learner of so many workers, which is stopped at the end: start(factory, workers)."""
    from learner.ray_learner import RayLearner

    started: list[Any] = []

    def begin(factory: Any, workers: int) -> Any:
        started.append(RayLearner(factory, num_cpus=0.5, num_gpus=0, workers=workers, timeout_s=60.0))
        return started[-1].started()

    yield begin
    for learner in started:
        learner.shutdown()


@pytest.fixture(scope="module")
def pair(start: Start, config: Config) -> Any:
    """Two workers of the real learner."""
    return start(partial(with_gradient, config), 2)


def with_gradient(config: Config, fetch: Any, gang: Gang) -> Any:
    """The real learner, whose state shows its last gradient, too."""
    from raydense.wiring.roles import build_learner

    learner = build_learner(config, fetch, gang)
    whole = learner.state_dict

    def state_dict() -> dict[str, Any]:
        return {**whole(), "gradient": [p.grad.numpy().copy() for p in learner.policy.parameters()]}

    learner.state_dict = state_dict  # type: ignore[method-assign]
    return learner


def check_first_step(workers: Any, config: Config, groups: Any) -> None:
    """That it is the step of one worker, which is computed here."""
    from learner.ray_learner import fetch_groups

    found = []
    for learner in (with_gradient(config, fetch_groups, Gang()), workers):
        learner.begin_stage(0, groups)
        (row,) = learner.train(1)
        state = learner.state_dict()
        found.append((row.values, np.concatenate([g.ravel() for g in state["gradient"]]), state["references"]))
    (values, gradient, references), (other_values, other_gradient, other_references) = found
    assert np.linalg.norm(other_gradient - gradient) <= 1e-5 * np.linalg.norm(gradient)
    assert {n: pytest.approx(v, rel=1e-4, abs=1e-5) for n, v in values.items()} == other_values
    known, other = references["log_probs"], other_references["log_probs"]
    assert torch.equal(known.isnan(), other.isnan())  # rank 0 knows what the others computed
    torch.testing.assert_close(known, other, equal_nan=True, rtol=1e-5, atol=1e-5)


@pytest.mark.ray
def test_workers_take_the_step_of_one(pair: Any, config: Config, groups: Any) -> None:
    check_first_step(pair, config, groups)
    pair.train(2)
    assert pair.weights().version == 3  # and it has compared all workers' checksums
    averaged = pair.averaged()
    assert (averaged.version, averaged.steps) == (averaged_version(3), 3)
    assert averaged.checksum == tensor_checksum(averaged.tensors) != pair.weights().checksum


@pytest.mark.slow
@pytest.mark.ray
def test_three_workers_do(start: Start, config: Config, groups: Any) -> None:
    """plain: `test_workers_take_the_step_of_one`, of two workers; here four tuples, which they share unequally."""
    config = config.model_copy(update={"train": config.train.model_copy(update={"batch_groups": 4})})
    check_first_step(start(partial(with_gradient, config), 3), config, groups)


@pytest.mark.ray
def test_a_dead_worker_is_the_learners_death_and_new_ones_go_on_from_a_checkpoint(pair: Any, groups: Any) -> None:
    import ray

    pair.begin_stage(0, groups)
    pair.train(1)
    state = pair.state_dict()
    pair.train(3)
    expected = pair.weights()
    pid = ray.get(pair._actors[1].__ray_call__.remote(lambda actor: os.getpid()))
    psutil.Process(pid).kill()
    began = time.monotonic()
    with pytest.raises(LearnerDied):
        pair.train(5)
    assert time.monotonic() - began < 30  # not the exchange's time-out, which is 60 s
    pair.started().load_state_dict(state)
    pair.begin_stage(0, groups)
    pair.train(3)
    assert pair.weights().checksum == expected.checksum


def fake_learner_factory() -> Callable[..., Any]:
    """A learner whose weights are its rank, and which cannot read its groups if that is 1; workers get it by value."""

    class FakeLearner:
        def __init__(self, fetch: Any, gang: Any) -> None:
            self._gang = gang

        def weights(self) -> Any:
            from raydense.core.types import PolicyWeights

            return PolicyWeights.of(0, {"rank": np.full(1, self._gang.rank, np.float32)})

        averaged = weights

        def train(self, num_steps: int) -> Any:
            return self._gang.agree(self._fetch)

        def _fetch(self) -> list[int]:
            from raydense.core.interfaces import GroupsLost

            if self._gang.rank == 1:
                raise GroupsLost("gone with their node")
            return [7]

    return FakeLearner


@pytest.mark.ray
def test_workers_agree_on_lost_groups_and_differing_weights_are_found_out(start: Start) -> None:
    learner = start(fake_learner_factory(), 2)
    for _ in range(2):  # nobody is left waiting
        with pytest.raises(GroupsLost):
            learner.train(1)
    for method in (learner.weights, learner.averaged):
        with pytest.raises(RuntimeError, match="the learner's workers differ: weights"):
            method()
