"""The pool of sampler actors: two calls in flight each, and work that goes back when one dies or fails."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.ray_sampler import RaySampler
from raydense.core.actor_options import actor_options
from raydense.core.interfaces import UNIT_RETRIES, Sampler, UnitFailed
from raydense.core.types import PolicyWeights, Rendered, RenderUnit, UnitReport, WorkUnit

IN_FLIGHT = 2  # calls a sampler; hides the control plane's latency
MAX_DEATHS = 10  # of samplers, a run


class FleetError(RuntimeError):
    """The fleet cannot finish its work; the message says why."""


@dataclass(eq=False)
class _Job:
    position: int  # of the unit in the caller's list
    unit: Any
    tries: int = 0  # that ended in an error of the unit's own
    failed_on: int = -1  # the sampler of the last such try


@dataclass(frozen=True)
class _Call:
    job: _Job
    sampler: int
    refs: tuple[Any, ...]  # the first is small and says that the call has ended


class RayFleet:
    """Samplers in the cluster; the handle of a group is an ObjectRef that this process owns.

    Args:
        factory: makes a sampler from its name, in the actor's process.
        count: of actors. num_cpus, num_gpus: that each reserves.
        labels: that a node must have, as Ray's label selectors. run: the actors are named after it.
    """

    def __init__(
        self,
        factory: Callable[[str], Sampler],
        *,
        count: int,
        num_cpus: float,
        num_gpus: float,
        labels: Mapping[str, str] = {},  # never changed
        run: str = "run",
    ) -> None:
        resources = {"num_cpus": num_cpus, "num_gpus": num_gpus, "scheduling_strategy": "SPREAD"}
        names = [f"sampler-{i}" for i in range(count)]
        self._samplers = [
            RaySampler.options(  # type: ignore[attr-defined]
                max_restarts=-1, max_task_retries=0, **resources, **actor_options(run, name, labels)
            ).remote(factory, name, run)
            for name in names
        ]
        self._alive = list(range(count))
        self._restarting: dict[Any, int] = {}  # ref of its `ready` call → sampler
        self._weights: Any = None
        self._stamp = (-1, "")
        self.deaths = self.lost = self.retried = 0

    def wait_ready(self) -> None:
        """Returns when every sampler has loaded its models. Raises what its construction raised."""
        ray.get([sampler.ready.remote() for sampler in self._samplers])

    def broadcast(self, weights: PolicyWeights) -> None:
        """Puts new weights into the object store once; the calls carry the reference, each node copies them once."""
        if (weights.version, weights.checksum) != self._stamp:
            self._weights, self._stamp = ray.put(weights), (weights.version, weights.checksum)

    def collect(self, units: Iterable[WorkUnit]) -> Iterator[tuple[UnitReport, Sequence[Any]]]:
        for call, report in self._run("sample", list(units), lambda unit: 1 + len(unit.prompts)):
            yield report, call.refs[1:]

    def render(self, units: Iterable[RenderUnit]) -> list[Rendered]:
        results = {call.job.position: rendered for call, rendered in self._run("render", list(units), lambda _: 1)}
        return [results[position] for position in sorted(results)]

    def shutdown(self) -> None:
        for sampler in self._samplers:
            ray.kill(sampler)

    def _run(self, method: str, units: Sequence[Any], num_returns: Callable[[Any], int]) -> Iterator[tuple[_Call, Any]]:
        """Every unit exactly once, in order of arrival; one whose sampler died, or that failed, goes back to the front.

        Raises: UnitFailed when a unit has failed too often.
        """
        pending = deque(_Job(position, unit) for position, unit in enumerate(units))
        slots = deque(sampler for _ in range(IN_FLIGHT) for sampler in self._alive)
        calls: dict[Any, _Call] = {}
        while pending or calls:
            while pair := self._match(pending, slots):
                call = self._submit(method, *pair, num_returns(pair[0].unit))
                calls[call.refs[0]] = call
            done, _ = ray.wait([*calls, *self._restarting], num_returns=1)
            if done[0] in self._restarting:
                slots.extend([self._finish_restart(done[0])] * IN_FLIGHT)
                continue
            call = calls.pop(done[0])
            try:
                result = ray.get(done[0])
            except (RayTaskError, RayActorError) as error:
                if isinstance(error, RayTaskError):
                    self._count_failure(call, error)
                else:
                    self.lost += 1
                    self._begin_restart(call.sampler, error)
                    slots = deque(sampler for sampler in slots if sampler != call.sampler)
                pending.appendleft(call.job)
                self.retried += 1
            else:
                yield call, result
            if call.sampler in self._alive:
                slots.append(call.sampler)

    def _match(self, pending: deque[_Job], slots: deque[int]) -> tuple[_Job, int] | None:
        """The first unit and slot that may come together: a unit that failed goes to another sampler, if one lives."""
        for job in pending:
            for sampler in slots:
                if sampler != job.failed_on or len(self._alive) == 1:
                    pending.remove(job)
                    slots.remove(sampler)
                    return job, sampler
        return None

    def _count_failure(self, call: _Call, error: RayTaskError) -> None:
        call.job.tries, call.job.failed_on = call.job.tries + 1, call.sampler
        if call.job.tries > UNIT_RETRIES:
            raise UnitFailed.after(call.job.tries, error.cause or error) from error

    def _submit(self, method: str, job: _Job, sampler: int, num_returns: int) -> _Call:
        remote = getattr(self._samplers[sampler], method).options(num_returns=num_returns)
        refs = remote.remote(job.unit, self._weights)
        return _Call(job, sampler, (refs,) if num_returns == 1 else tuple(refs))

    def _begin_restart(self, sampler: int, error: RayActorError) -> None:
        """Takes a dead sampler out of service; Ray restarts it, and `ready` answers when it is back."""
        if sampler not in self._alive:
            return  # another of its calls told us already
        self._alive.remove(sampler)
        self.deaths += 1
        if self.deaths > MAX_DEATHS:
            raise FleetError(f"samplers died {self.deaths} times; the last: {_one_line(error)}") from error
        self._restarting[self._samplers[sampler].ready.remote()] = sampler

    def _finish_restart(self, ready: Any) -> int:
        sampler = self._restarting.pop(ready)
        try:
            ray.get(ready)
        except RayActorError as error:
            raise FleetError(f"sampler-{sampler} died and cannot be restarted: {_one_line(error)}") from error
        self._alive.append(sampler)
        return sampler


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
