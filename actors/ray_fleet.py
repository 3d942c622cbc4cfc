"""The elastic pool of sampler actors: they join when they have a place, leave when it goes, and lose no work.

A thread of its own serves the pool, whatever the driver is at: training, writing a checkpoint, drawing pictures.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayTaskError

from actors.collection import TICK_S, JobCollection
from actors.dispatch import Deadlines, Dispatcher, FleetError, Job, Member
from actors.ray_departures import Departures
from actors.ray_sampler import Sampler
from actors.versions import LiveVersions
from raydense.config import ConfigError
from raydense.core import interfaces
from raydense.core.interfaces import InertWeights
from raydense.core.messages import one_line
from raydense.core.ray_actors import DEATHS, actor_options
from raydense.core.types import PolicyWeights, Rendered, RenderUnit, WorkUnit
from raydense.pipelines.base_model import BaseModel

MAX_BUILD_FAILURES = 3  # of one sampler in a row, before its place is given up


@dataclass(frozen=True)
class _Call:
    job: Job
    member: Member
    refs: tuple[Any, ...]  # the first is small and says that the call has ended


class RayFleet:
    """Samplers in the cluster; the handle of a group is an ObjectRef that this process owns.

    Args:
        factory: makes a sampler from its name, in the actor's process.
        maximum: of actors; those without a place are pending, which is what an autoscaler answers.
        minimum: that must be ready before `wait_ready` returns.
        num_cpus, num_gpus, memory (bytes): that each reserves.
        deadlines: after which a running unit counts as hung.
        patience_s: without any live sampler, before the fleet gives up.
        run_seed: for messages.
        labels: that a node must have, as Ray's label selectors. run: the actors are named after it.
        base: the base model that all must have loaded; None: no matter which.
        departures: of groups from the samplers' nodes; None: they stay until somebody asks for them.
    """

    def __init__(
        self,
        factory: Callable[[str], interfaces.Sampler],
        *,
        maximum: int,
        minimum: int,
        num_cpus: float,
        num_gpus: float,
        memory: int = 0,
        deadlines: Deadlines,
        patience_s: float,
        run_seed: int,
        labels: Mapping[str, str] = {},  # never changed
        run: str = "run",
        base: BaseModel | None = None,
        departures: Departures | None = None,
    ) -> None:
        self._base, self._departures = base or BaseModel(), departures
        self._factory, self._labels, self._run = factory, labels, run
        self._resources = {"num_cpus": num_cpus, "num_gpus": num_gpus, "memory": memory}
        self._minimum, self._patience_s = minimum, patience_s
        self._dispatcher = Dispatcher(deadlines, run_seed)
        self._actors: dict[str, Any] = {}
        self._starting: dict[Any, Member] = {}  # ref of its `ready` call → member
        self._build_failures: dict[str, int] = {}
        self._calls: dict[Any, _Call] = {}
        self._versions: LiveVersions[Any] = LiveVersions(ray.put)
        self._inbox: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._closing = threading.Event()
        self._enough = threading.Event()
        if minimum == 0:
            self._enough.set()
        for index in range(maximum):
            self._enlist(Member(f"sampler-{index}"))
        self._alive_at = time.monotonic()
        self._thread = threading.Thread(target=self._serve, name="fleet", daemon=True)
        self._thread.start()

    # -- raydense.core.interfaces.Fleet -------------------------------------------------------------------

    @property
    def faults(self) -> Mapping[str, int]:
        return dict(self._dispatcher.faults)

    @property
    def live(self) -> int:
        return len(self._dispatcher.live)

    def wait_ready(self) -> None:
        """Returns when `minimum` samplers have loaded their models. Raises what their construction raised."""
        while not self._enough.wait(TICK_S):
            self._check()

    def broadcast(self, weights: PolicyWeights) -> None:
        """Puts a version into the object store once; calls carry the reference, each node copies it once."""
        self._versions.add(weights)

    def collect(self, units: Iterable[WorkUnit]) -> JobCollection:
        return self._submit("sample", list(units))

    def render(self, units: Iterable[RenderUnit]) -> list[Rendered]:
        collection = self._submit("render", list(units))
        try:
            results = dict(collection.outcomes())
        finally:
            collection.close()
        return [results[job] for job in collection.jobs]

    def is_lost(self, handles: Sequence[Any]) -> bool:
        return any(map(_is_lost, handles))

    def shutdown(self) -> None:
        self._closing.set()
        self._thread.join()
        for actor in self._actors.values():
            ray.kill(actor)

    # -- the caller's side --------------------------------------------------------------------------------

    def _submit(self, method: str, units: list[Any]) -> JobCollection:
        self._check()
        arrived: queue.SimpleQueue[tuple[Job, Any]] = queue.SimpleQueue()
        jobs = [Job(method, unit, self._versions[unit.weights_version], arrived) for unit in units]
        self._inbox.put(lambda: self._dispatcher.add(jobs))
        return JobCollection(jobs, arrived, self._check, lambda: self._inbox.put(lambda: self._dispatcher.cancel(jobs)))

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    # -- the thread's side --------------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            while not self._closing.is_set():
                self._turn()
        except BaseException as error:
            self._error = error  # raised where somebody waits

    def _turn(self) -> None:
        busy = bool(self._calls or self._starting)
        self._take_inbox(0.0 if busy else TICK_S)
        if self._departures:
            self._departures.look(time.monotonic())
        while pair := self._dispatcher.assign(time.monotonic()):
            self._call(*pair)
        if waited_for := [*self._calls, *self._starting]:
            done, _ = ray.wait(waited_for, num_returns=1, timeout=TICK_S)
            for ref in done:
                self._settle_start(ref) if ref in self._starting else self._settle_call(ref)
        for member in self._dispatcher.overdue(time.monotonic()):
            self._kill_hung(member)
        self._check_patience()

    def _take_inbox(self, wait_s: float) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                act = self._inbox.get(timeout=wait_s) if wait_s else self._inbox.get_nowait()
                act()
                wait_s = 0.0

    def _call(self, job: Job, member: Member) -> None:
        num_returns = 1 + len(job.unit.prompts) if job.method == "sample" else 1
        remote = getattr(self._actors[member.name], job.method).options(num_returns=num_returns, name=job.unit.task)
        refs = remote.remote(job.unit, job.weights)
        call = _Call(job, member, (refs,) if num_returns == 1 else tuple(refs))
        self._calls[call.refs[0]] = call

    def _settle_call(self, ref: Any) -> None:
        call = self._calls.pop(ref)
        try:
            result = ray.get(ref)
        except RayTaskError as error:
            if isinstance(error.cause, InertWeights):
                raise error.cause from error
            self._dispatcher.fail(call.member, call.job, error.cause or error, time.monotonic())
        except DEATHS as error:
            self._lose(call.member, "deaths", one_line(error))
        else:
            now = time.monotonic()
            self._dispatcher.finish(call.member, call.job, now)
            if self._departures and call.job.method == "sample":
                patience_s = self._dispatcher.deadline_s("sample")
                self._departures.begin(call.member, result, call.refs[1:], now + patience_s)
            call.job.arrived.put((call.job, result if call.job.method == "render" else (result, call.refs[1:])))

    def _kill_hung(self, member: Member) -> None:
        running = member.jobs[0]
        cause = f"{member.name} hung for over {self._dispatcher.deadline_s(running.method):.0f} s and was killed"
        ray.kill(self._actors[member.name], no_restart=False)
        self._lose(member, "hangs", cause)

    def _lose(self, member: Member, fault: str, cause: str) -> None:
        """Takes a sampler out of service; Ray restarts it where it finds a place, and `ready` answers then."""
        self._calls = {ref: call for ref, call in self._calls.items() if call.member is not member}
        self._starting[self._actors[member.name].ready.remote()] = member
        self._dispatcher.die(member, fault, cause)

    def _enlist(self, member: Member) -> None:
        self._dispatcher.members[member.name] = member
        self._actors[member.name] = self._start(member.name)
        self._starting[self._actors[member.name].ready.remote()] = member

    def _start(self, name: str) -> Any:
        options = Sampler.options(  # type: ignore[attr-defined]
            max_restarts=-1,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
            **self._resources,
            **actor_options(self._run, name, self._labels),
        )
        return options.remote(self._factory, name, self._run, self._base.look())

    def _settle_start(self, ref: Any) -> None:
        member = self._starting.pop(ref)
        try:
            self._base.admit(member.name, *ray.get(ref))
        except RayTaskError as error:
            self._replace(member, error.cause or error)
            return
        except (*DEATHS, ConfigError) as error:
            self._replace(member, error)
            return
        member.alive = True
        self._build_failures.pop(member.name, None)
        if self.live >= self._minimum:
            self._enough.set()

    def _replace(self, member: Member, error: Exception) -> None:
        """A sampler that cannot be built, or has another base model: the run's own fault while too few could be, else
        a new actor's chance. So is one that its node took down, memory or all, unless that goes on.
        """
        ray.kill(self._actors[member.name])
        failures = self._build_failures[member.name] = self._build_failures.get(member.name, 0) + 1
        taken_down = isinstance(error, DEATHS) and not isinstance(error, RayActorError)
        if not self._enough.is_set() and not (taken_down and failures < MAX_BUILD_FAILURES):
            raise error
        self._dispatcher.faults["unbuilt"] += 1
        if failures < MAX_BUILD_FAILURES:
            self._enlist(member)
        elif not self.live and not self._starting:
            raise FleetError(f"no sampler can be built any more; the last: {one_line(error)}") from error

    def _check_patience(self) -> None:
        now = time.monotonic()
        somebody_waits = self._dispatcher.has_work or not self._enough.is_set()
        if self.live or not somebody_waits:
            self._alive_at = now
        elif now - self._alive_at > self._patience_s:
            raise FleetError(
                f"no live sampler for {self._patience_s:g} s (samplers.patience_s); add nodes, then continue the run"
            )


def _is_lost(ref: Any) -> bool:
    """Whether the object store has given it up; does not wait, and does not fetch it."""
    try:
        ray.get(ref, timeout=0)
    except ObjectLostError:
        return True
    except GetTimeoutError:
        return False  # it is elsewhere
    return False
