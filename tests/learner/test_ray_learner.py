"""The learner's actor: groups reach it as references, and everything else passes through unchanged."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydense.config import ConfigError
from raydense.core.interfaces import LearnerDied
from raydense.core.types import PolicyWeights, StepMetrics
from raydense.pipelines.base_model import LEARNED_WITH, BaseModel, model_checksums

pytestmark = pytest.mark.ray


def fake_learner_factory() -> Callable[..., Any]:
    """Makes a `Learner` that reports what it was given. All of it is local, so that workers get it by value."""

    class FakeLearner:
        def __init__(self, fetch: Callable[[Sequence[Any]], Sequence[Any]], gang: Any) -> None:
            self._fetch = fetch
            self._step = 0
            self._groups: Sequence[Any] = ()

        def _check_device(self) -> None:
            if self._groups is None:
                raise RuntimeError("CUDA error: device-side assert triggered")

        def weights(self) -> PolicyWeights:
            self._check_device()
            return PolicyWeights.of(self._step, {"a": np.full(2, self._step, np.float32)})

        def averaged(self) -> PolicyWeights | None:
            return None

        def begin_stage(self, stage: int, groups: Sequence[Any]) -> None:
            self._check_device()
            self._groups = groups

        def train(self, num_steps: int) -> list[StepMetrics]:
            self._check_device()
            arrays = self._fetch(self._groups)
            self._step += num_steps
            values = {
                "sum": float(sum(a.sum() for a in arrays)),
                "references": float(sum(type(g).__name__ == "ObjectRef" for g in self._groups)),
                "writeable": float(sum(a.flags.writeable for a in arrays)),
            }
            return [StepMetrics(self._step, values)]

        def state_dict(self) -> Mapping[str, Any]:
            self._check_device()
            return {"step": self._step}

        def load_state_dict(self, state: Mapping[str, Any]) -> None:
            self._check_device()
            if state["step"] == 666:
                os._exit(1)
            if state["step"] == 667:
                self._groups = None  # from now on its GPU has failed
            if state["step"] < 0:
                raise ValueError("a step below 0")
            self._step = state["step"]

    return FakeLearner


@pytest.fixture
def learner(ray_cluster: None) -> Iterator[Any]:
    from learner.ray_learner import RayLearner

    learner = RayLearner(fake_learner_factory(), num_cpus=0.5, num_gpus=0)
    yield learner.started()
    learner.shutdown()


def test_groups_travel_as_references_and_are_views_where_they_are_read(learner: Any) -> None:
    import ray

    arrays = [np.full((512, 512), i, np.float32) for i in range(3)]
    learner.begin_stage(0, [ray.put(a) for a in arrays])
    (row,) = learner.train(2)
    assert row == StepMetrics(2, {"sum": 3.0 * 512 * 512, "references": 3.0, "writeable": 0.0})


def test_weights_and_state_pass_through(learner: Any) -> None:
    assert learner.weights().version == 0
    learner.load_state_dict({"step": 7})
    assert learner.state_dict() == {"step": 7}
    weights = learner.weights()
    assert (weights.version, weights.tensors["a"].tolist()) == (7, [7.0, 7.0])
    assert weights.checksum == PolicyWeights.of(7, weights.tensors).checksum
    assert learner.averaged() is None


def test_another_base_model_than_the_runs_is_refused(ray_cluster: None, pipeline_dir: Path) -> None:
    from learner.ray_learner import RayLearner

    base = BaseModel(str(pipeline_dir), None, {"unet": "another"})
    learner = RayLearner(fake_learner_factory(), num_cpus=0.5, num_gpus=0, base=base)
    with pytest.raises(ConfigError, match=r"on node \S+ \(\w{8}\), learner loaded another unet than the run began"):
        learner.started()
    learner.shutdown()
    base = BaseModel(str(pipeline_dir))
    learner = RayLearner(fake_learner_factory(), num_cpus=0.5, num_gpus=0, base=base)
    learner.started()
    learner.shutdown()
    assert base.known == model_checksums(str(pipeline_dir), None, LEARNED_WITH)


def test_one_that_cannot_be_built_says_why(ray_cluster: None) -> None:
    from learner.ray_learner import RayLearner

    def broken(*_: Any) -> Any:
        raise FileNotFoundError("policy.model=nowhere: cannot load its unet")

    learner = RayLearner(broken, num_cpus=0.5, num_gpus=0, patience_s=300.0)
    with pytest.raises(LearnerDied, match=r"policy\.model=nowhere: cannot load its unet"):
        learner.started()
    learner.shutdown()


def test_its_errors_are_the_drivers(learner: Any) -> None:
    with pytest.raises(ValueError, match="a step below 0"):
        learner.load_state_dict({"step": -1})


def test_its_death_is_told_apart_and_it_can_be_started_anew(learner: Any) -> None:
    learner.load_state_dict({"step": 7})
    with pytest.raises(LearnerDied):
        learner.load_state_dict({"step": 666})
    with pytest.raises(LearnerDied):
        learner.weights()
    assert learner.started().weights().version == 0  # in its first state: the caller restores a checkpoint


def test_a_gpu_that_failed_is_the_death_of_its_process_whoever_finds_it_out(learner: Any) -> None:
    for method, *arguments in (
        ("weights",), ("begin_stage", 0, []), ("train", 1), ("state_dict",), ("load_state_dict", {"step": 1}),
    ):  # fmt: skip
        learner.load_state_dict({"step": 667})
        with pytest.raises(LearnerDied):
            getattr(learner, method)(*arguments)
        assert learner.started().weights().version == 0
