"""The learner as a Ray actor (a thin shell), and the driver's view of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayTaskError

from learner.gang import LOOPBACK, Gang
from raydense.core import interfaces
from raydense.core.interfaces import GroupsLost, LearnerDied
from raydense.core.messages import one_line
from raydense.core.ray_actors import (
    DEATHS,
    actor_options,
    ended_by_device_faults,
    hide_unreserved_gpus,
    keep_title,
    node_name,
)
from raydense.core.types import PolicyWeights, StepMetrics, TrajectoryGroup
from raydense.pipelines.base_model import LEARNED_WITH, BaseModel, Checksums

FETCH_BEGINS_S = 0.1  # until Ray has asked the driver where groups are; from then on it goes on by itself
LearnerFactory = Callable[[Callable[..., Any], Gang], interfaces.Learner[Any]]


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
class Learner:  # what Ray lists
    """One worker of the learner. Args: look: says which files the base model was loaded from."""

    def __init__(self, factory: LearnerFactory, rank: int, size: int, look: Callable[[], Checksums]) -> None:
        hide_unreserved_gpus()
        self._gang, self._look = Gang(rank, size), look
        self._learner = factory(fetch_groups, self._gang)
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="fetch-ahead")

    def __repr__(self) -> str:
        """What Ray lists, and begins this process's log with; it asks one that cannot be built, too."""
        return repr(self._learner) if hasattr(self, "_learner") else "Learner"

    def address(self) -> str:
        return str(ray.util.get_node_ip_address())

    def node(self) -> str:
        return str(ray.get_runtime_context().get_node_id())

    def fetch_ahead(self, groups: Sequence[Any]) -> None:
        """Begins to bring groups into this node's object store, and does not wait for them."""
        self._ahead.submit(ray.wait, list(groups), num_returns=len(groups), timeout=FETCH_BEGINS_S)

    def base_model(self) -> tuple[str, Checksums]:
        return node_name(), self._look()

    def listen(self, host: str) -> int:
        return self._gang.listen(host)

    @ended_by_device_faults
    def join(self, host: str, port: int, timeout_s: float) -> None:
        self._gang.join(host, port, timeout_s)

    @ended_by_device_faults
    def weights(self) -> PolicyWeights:
        return self._learner.weights()

    @ended_by_device_faults
    def averaged(self) -> PolicyWeights | None:
        return self._learner.averaged()

    @ended_by_device_faults
    def begin_stage(self, stage: int, groups: Sequence[Any]) -> None:
        self._learner.begin_stage(stage, groups)

    @ended_by_device_faults
    def train(self, num_steps: int) -> list[StepMetrics]:
        keep_title("Learner.train")
        return self._learner.train(num_steps)

    @ended_by_device_faults
    def state_dict(self) -> Mapping[str, Any]:
        return self._learner.state_dict()

    @ended_by_device_faults
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._learner.load_state_dict(state)


class RayLearner:
    """`Learner` whose handles are ObjectRefs and whose work happens in one actor, or in several that share each batch.

    Args:
        factory: makes a worker's learner from its fetch function and its gang, in the actor's process.
        num_cpus, num_gpus, memory (bytes): that each actor reserves.
        workers: how many. timeout_s: that one waits for the others before the learner counts as dead.
        patience_s: that a place for them is waited for.
        labels: that their nodes must have, as Ray's label selectors. run: they are named after it.
        base: the base model that all must have loaded; None: no matter which.
    """

    def __init__(
        self,
        factory: LearnerFactory,
        *,
        num_cpus: float,
        num_gpus: float,
        memory: int = 0,
        workers: int = 1,
        timeout_s: float = 600.0,
        patience_s: float = 600.0,
        labels: Mapping[str, str] = {},  # never changed
        run: str = "run",
        base: BaseModel | None = None,
    ) -> None:
        self._base = base or BaseModel()
        self._factory, self._labels, self._run, self._size = factory, labels, run, workers
        self._resources = {"num_cpus": num_cpus, "num_gpus": num_gpus, "memory": memory}
        self._timeout_s, self._patience_s = timeout_s, patience_s
        self._roles = ["learner"] if workers == 1 else [f"learner-{rank}" for rank in range(workers)]
        self._died = False
        self._stage = self._step = 0  # for names of tasks
        self.nodes: Collection[str] = ()  # ids of those that the workers are on
        self._actors = self._start()

    def started(self) -> RayLearner:
        """Waits until all workers have met; after a death, until as many new ones have, in their first state."""
        if not self._died:
            try:
                self._meet()
                return self
            except LearnerDied:
                pass
        self.shutdown()
        self._actors, self._died, self._step = self._start(), False, 0
        self._meet()
        return self

    def weights(self) -> PolicyWeights:
        return _all_the_same(self._call("weights"))

    def averaged(self) -> PolicyWeights | None:
        answers = self._call("averaged")
        return None if None in answers else _all_the_same(answers)

    def begin_stage(self, stage: int, groups: Sequence[Any]) -> None:
        self._stage = stage
        self._call("begin_stage", stage, list(groups))  # in a list: references, not values

    def fetch_ahead(self, groups: Sequence[Any]) -> None:
        """Begins to bring groups to the workers' nodes, before a batch draws them; called from any thread."""
        for actor in self._actors:
            actor.fetch_ahead.options(num_returns=0).remote(list(groups))  # in a list: references, not values

    def train(self, num_steps: int) -> list[StepMetrics]:
        name = f"train stage {self._stage} step {self._step + 1}"
        metrics: list[StepMetrics] = self._call("train", num_steps, name=name)[0]
        self._step = metrics[-1].step
        return metrics

    def state_dict(self) -> Mapping[str, Any]:
        state: Mapping[str, Any] = self._call("state_dict", workers=self._actors[:1])[0]
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._call("load_state_dict", state)
        self._step = state["step"]

    def shutdown(self) -> None:
        for actor in self._actors:
            ray.kill(actor)

    def _start(self) -> list[Any]:
        options = [{**self._resources, **actor_options(self._run, role, self._labels)} for role in self._roles]
        return [
            Learner.options(**option).remote(  # type: ignore[attr-defined]
                self._factory, rank, self._size, self._base.look(LEARNED_WITH)
            )
            for rank, option in enumerate(options)
        ]

    def _meet(self) -> None:
        """On loopback where all are on one node. A single worker is only waited for."""
        hosts = self._call("address", timeout=self._patience_s)
        for role, report in zip(self._roles, self._call("base_model"), strict=True):
            self._base.admit(role, *report)
        self.nodes = frozenset(self._call("node"))
        if self._size > 1:
            host = hosts[0] if len(set(hosts)) > 1 else LOOPBACK
            port = self._call("listen", host, workers=self._actors[:1])[0]
            self._call("join", host, port, self._timeout_s)

    def _call(
        self,
        method: str,
        *arguments: Any,
        name: str | None = None,
        workers: Sequence[Any] | None = None,
        timeout: float | None = None,
    ) -> list[Any]:
        """Every worker's answer; the first failure of any of them is raised at once. Args: name: of the tasks."""
        name = name or f"Learner.{method}"  # Ray's own
        calls = [getattr(actor, method).options(name=name).remote(*arguments) for actor in workers or self._actors]
        try:
            answers: list[Any] = ray.get(calls, timeout=timeout)
            return answers
        except GetTimeoutError:
            raise TimeoutError(
                f"the learner found no place, or did not start, within {timeout:g} s (samplers.patience_s); add a node "
                "that has what it reserves, then continue the run"
            ) from None
        except DEATHS as error:
            self._died = True
            raise LearnerDied(one_line(error)) from error
        except RayTaskError as error:
            self._died = self._died or isinstance(error.cause, LearnerDied)
            raise (error.cause or error) from error


def _all_the_same(answers: Sequence[PolicyWeights]) -> PolicyWeights:
    """What every worker answered. Raises: RuntimeError if their weights differ."""
    weights, *others = answers
    if different := [other.checksum for other in others if other.checksum != weights.checksum]:
        raise RuntimeError(f"the learner's workers differ: weights {weights.checksum} and {', '.join(different)}")
    return weights
