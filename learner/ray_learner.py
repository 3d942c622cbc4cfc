"""The learner as a Ray actor (a thin shell), and the driver's view of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayTaskError

from raydense.core.actor_options import actor_options
from raydense.core.errors import one_line
from raydense.core.interfaces import GroupsLost, Learner, LearnerDied
from raydense.core.types import PolicyWeights, StepMetrics, TrajectoryGroup


def fetch_groups(refs: Sequence[Any]) -> Sequence[TrajectoryGroup]:
    """Groups out of the object store; their arrays are read-only views of it where they lie on this node.

    Raises: GroupsLost if one went with its node.
    """
    try:
        groups: list[TrajectoryGroup] = ray.get(list(refs))
    except ObjectLostError as error:
        raise GroupsLost(one_line(error)) from None
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
        num_cpus, num_gpus, memory (bytes): that the actor reserves.
        patience_s: that a place for it is waited for.
        labels: that its node must have, as Ray's label selectors. run: it is named after it.
    """

    def __init__(
        self,
        factory: Callable[[Callable[..., Any]], Learner[Any]],
        *,
        num_cpus: float,
        num_gpus: float,
        memory: int = 0,
        patience_s: float = 600.0,
        labels: Mapping[str, str] = {},  # never changed
        run: str = "run",
    ) -> None:
        self._factory, self._labels, self._run = factory, labels, run
        self._resources = {"num_cpus": num_cpus, "num_gpus": num_gpus, "memory": memory}
        self._patience_s = patience_s
        self._actor = self._start()

    def started(self) -> RayLearner:
        """Waits until the actor is ready; a dead one is replaced by one in its first state."""
        try:
            self._call("ready", timeout=self._patience_s)
        except LearnerDied:
            self._actor = self._start()
            self._call("ready", timeout=self._patience_s)
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

    def _call(self, method: str, *arguments: Any, timeout: float | None = None) -> Any:
        try:
            return ray.get(getattr(self._actor, method).remote(*arguments), timeout=timeout)
        except GetTimeoutError:
            raise TimeoutError(
                f"the learner found no place, or did not start, within {timeout:g} s (samplers.patience_s); add a node "
                "that has what it reserves, then continue the run"
            ) from None
        except RayActorError as error:
            raise LearnerDied(one_line(error)) from error
        except RayTaskError as error:
            raise (error.cause or error) from error
