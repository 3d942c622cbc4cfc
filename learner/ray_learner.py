"""The learner as a Ray actor (a thin shell), and the driver's view of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from raydense.core.actor_options import actor_options
from raydense.core.interfaces import Learner, LearnerDied
from raydense.core.types import PolicyWeights, StepMetrics, TrajectoryGroup


def fetch_groups(refs: Sequence[Any]) -> Sequence[TrajectoryGroup]:
    """Groups out of the object store; their arrays are read-only views of it where they lie on this node."""
    groups: list[TrajectoryGroup] = ray.get(list(refs))
    return groups


@ray.remote
class _LearnerActor:
    def __init__(self, factory: Callable[[Callable[..., Any]], Learner[Any]]) -> None:
        self._learner = factory(fetch_groups)

    def ready(self) -> None:
        return None

    def weights(self) -> PolicyWeights:
        return self._learner.weights()

    def begin_stage(self, stage: int, groups: Sequence[Any]) -> None:
        self._learner.begin_stage(stage, groups)

    def train(self, num_steps: int) -> list[StepMetrics]:
        return self._learner.train(num_steps)

    def state_dict(self) -> Mapping[str, Any]:
        return self._learner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._learner.load_state_dict(state)


class RayLearner:
    """`Learner` whose handles are ObjectRefs and whose work happens in an actor.

    Args:
        factory: makes the learner from its fetch function, in the actor's process.
        num_cpus, num_gpus: that the actor reserves.
        labels: that its node must have, as Ray's label selectors. run: it is named after it.
    """

    def __init__(
        self,
        factory: Callable[[Callable[..., Any]], Learner[Any]],
        *,
        num_cpus: float,
        num_gpus: float,
        labels: Mapping[str, str] = {},  # never changed
        run: str = "run",
    ) -> None:
        self._factory, self._labels, self._run = factory, labels, run
        self._resources = {"num_cpus": num_cpus, "num_gpus": num_gpus}
        self._actor = self._start()

    def started(self) -> RayLearner:
        """Waits until the actor is ready; a dead one is replaced by one in its first state."""
        try:
            self._call("ready")
        except LearnerDied:
            self._actor = self._start()
            self._call("ready")
        return self

    def weights(self) -> PolicyWeights:
        weights: PolicyWeights = self._call("weights")
        return weights

    def begin_stage(self, stage: int, groups: Sequence[Any]) -> None:
        self._call("begin_stage", stage, list(groups))  # in a list: references, not values

    def train(self, num_steps: int) -> list[StepMetrics]:
        metrics: list[StepMetrics] = self._call("train", num_steps)
        return metrics

    def state_dict(self) -> Mapping[str, Any]:
        state: Mapping[str, Any] = self._call("state_dict")
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._call("load_state_dict", state)

    def shutdown(self) -> None:
        ray.kill(self._actor)

    def _start(self) -> Any:
        options = {**self._resources, **actor_options(self._run, "learner", self._labels)}
        return _LearnerActor.options(**options).remote(self._factory)  # type: ignore[attr-defined]

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return ray.get(getattr(self._actor, method).remote(*arguments))
        except RayActorError as error:
            raise LearnerDied(" ".join(str(error).split())) from error
        except RayTaskError as error:
            raise (error.cause or error) from error
