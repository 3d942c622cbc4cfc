"""A fleet and a learner behind their Protocols that compute nothing, for `scaling.py`: time in them is simulated."""

from __future__ import annotations

import heapq
import math
import queue
import random
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from actors.collection import JobCollection
from actors.dispatch import Deadlines, Dispatcher, Job, Member
from actors.versions import LiveVersions
from raydense.core.types import GroupMeta, PolicyWeights, Rendered, StepMetrics, UnitReport, WorkUnit

GROUP_BYTES = 8_400_000  # METHOD §7: five trajectories of SD1.5


class SimulatedFleet:
    """`Fleet` of many samplers: the real dispatcher, collections and versions; a unit ends when its time has come.

    Time leaps from event to event, in a thread of its own, as the fleet on Ray has one.
    Args: unit_s: that a unit takes, a tenth more or less by sampler, and as much by unit. rolled: R.
    """

    live_faults: Mapping[str, int] = {}

    def __init__(self, samplers: int, unit_s: float, rolled: int) -> None:
        self._dispatcher = Dispatcher(Deadlines(math.inf, 10.0, math.inf), run_seed=0)
        self._draws, self._unit_s = random.Random(0), unit_s
        self._rewards = (0.0,) * rolled
        self._pace = {}
        for index in range(samplers):
            member = Member(f"sampler-{index}", alive=True)
            self._dispatcher.members[member.name] = member
            self._pace[member.name] = self._draws.uniform(0.9, 1.1)
        self._versions: LiveVersions[PolicyWeights] = LiveVersions(lambda weights: weights)
        self._events: list[tuple[float, int, Job, Member]] = []
        self._inbox: queue.SimpleQueue[list[Job] | None] = queue.SimpleQueue()
        self.now, self.assigned = 0.0, 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def faults(self) -> Mapping[str, int]:
        return {}

    @property
    def live(self) -> int:
        return len(self._dispatcher.live)

    def broadcast(self, weights: PolicyWeights) -> None:
        self._versions.add(weights)

    def collect(self, units: Iterable[WorkUnit]) -> JobCollection:
        arrived: queue.SimpleQueue[tuple[Job, Any]] = queue.SimpleQueue()
        jobs = [Job("sample", unit, self._versions[unit.weights_version], arrived) for unit in units]
        self._inbox.put(jobs)
        return JobCollection(jobs, arrived, lambda: None, lambda: None)

    def render(self, units: Iterable[Any]) -> list[Rendered]:
        raise NotImplementedError

    def is_lost(self, handles: Sequence[Any]) -> bool:
        return False

    def shutdown(self) -> None:
        self._inbox.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while jobs := self._inbox.get():
            self._dispatcher.add(jobs)
            self._assign()
            while self._events:
                self.now, _, job, member = heapq.heappop(self._events)
                self._dispatcher.finish(member, job, self.now)
                if member.jobs:
                    self._begin(member)
                job.arrived.put((job, (self._report(job, member), range(len(job.unit.prompts)))))
                self._assign()

    def _assign(self) -> None:
        while pair := self._dispatcher.assign(self.now):
            _, member = pair
            if len(member.jobs) == 1:
                self._begin(member)

    def _begin(self, member: Member) -> None:
        ends = self.now + self._unit_s * self._pace[member.name] * self._draws.uniform(0.9, 1.1)
        self.assigned += 1
        heapq.heappush(self._events, (ends, self.assigned, member.jobs[0], member))

    def _report(self, job: Job, member: Member) -> UnitReport:
        unit, stamp = job.unit, (job.weights.version, job.weights.checksum)
        metas = tuple(
            GroupMeta(unit.stage, index, prompt, self._rewards, {}, GROUP_BYTES, *stamp)
            for index, prompt in zip(unit.group_indices, unit.prompts, strict=True)
        )
        return UnitReport(unit, metas, {"denoise": self._unit_s}, member.name)


class IdleLearner:
    """`Learner` whose steps take no time."""

    def __init__(self) -> None:
        self._step = 0

    def weights(self) -> PolicyWeights:
        return PolicyWeights.of(self._step, {"a": np.full(8, self._step, np.float32)})

    def begin_stage(self, stage: int, groups: Sequence[Any]) -> None: ...

    def train(self, num_steps: int) -> list[StepMetrics]:
        self._step += num_steps
        return [StepMetrics(self._step, {})]

    def state_dict(self) -> Mapping[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...
