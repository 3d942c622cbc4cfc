"""Fleets larger than a machine, for `scaling.py --simulated`: real loop and dispatcher, simulated time, no actors."""

from __future__ import annotations

import heapq
import math
import queue
import random
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from actors.collection import JobCollection
from actors.dispatch import Deadlines, Dispatcher, Job, Member
from actors.versions import LiveVersions
from learner.batch_source import BatchSource
from learner.losses import step_weights
from raydense.config import load_config
from raydense.core.replay import ReplayBuffer
from raydense.core.types import GroupMeta, PolicyWeights, Rendered, StepMetrics, TrajectoryGroup, UnitReport, WorkUnit
from raydense.planning.units import PromptSets
from raydense.records.segments import segment_path, write_segment
from raydense.training.stage_loop import run_stages

GROUP_BYTES = 8_400_000  # METHOD §7: five trajectories of SD1.5


class SimulatedFleet:
    """`Fleet` of many samplers: the real dispatcher, collections and versions; a unit ends when its time has come.

    Time leaps from event to event, in a thread of its own, as the fleet on Ray has one.
    Args: unit_s: that a unit takes, a tenth more or less by sampler, and as much by unit. rolled: R.
    """

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
        self.now, self._begun = 0.0, 0
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
                job.arrived.put((job, (self._report(job, member), [object() for _ in job.unit.prompts])))
                self._dispatcher.overdue(self.now)  # as the fleet on Ray asks at every turn
                self._assign()

    def _assign(self) -> None:
        while pair := self._dispatcher.assign(self.now):
            _, member = pair
            if len(member.jobs) == 1:
                self._begin(member)

    def _begin(self, member: Member) -> None:
        ends = self.now + self._unit_s * self._pace[member.name] * self._draws.uniform(0.9, 1.1)
        self._begun += 1  # breaks ties
        heapq.heappush(self._events, (ends, self._begun, member.jobs[0], member))

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

    def averaged(self) -> None: ...

    def begin_stage(self, stage: int, groups: Sequence[Any]) -> None: ...

    def train(self, num_steps: int) -> list[StepMetrics]:
        self._step += num_steps
        return [StepMetrics(self._step, {})]

    def state_dict(self) -> Mapping[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def direct(samplers: int, unit_s: float, units_each: int, observer: Any) -> dict[str, float]:
    """What the driver's own code costs: CPU a unit and memory a unit of a stage; two stages, units of one prompt."""
    units = samplers * units_each
    shape = f"stage={{count: 2, groups: {units}, steps: 1, schedule: synchronous}}"
    single = ["sampler.unit_prompts=1", "sampler.trajectories=12", "train.batch_groups=1"]
    config = load_config(overrides=[shape, *single])
    fleet, process = SimulatedFleet(samplers, unit_s, rolled=12), psutil.Process()
    before, used = process.memory_info().rss, time.process_time()
    try:
        run_stages(config, PromptSets(("a cat",), ()), fleet, IdleLearner(), observer)
    finally:
        fleet.shutdown()
    return {
        "samplers": samplers,
        "units": 2 * units,
        "efficiency": 2 * units_each * unit_s / fleet.now,
        "driver_cpu_ms_a_unit": 1000 * (time.process_time() - used) / (2 * units),
        "driver_kb_a_unit": (process.memory_info().rss - before) / units / 1000,
    }


def pulled(workers: int, groups: int, steps: int, batch_groups: int) -> dict[str, float]:
    """What one worker's node fetches in a stage where its store has room, and when: the real source of batches."""
    zeros = np.zeros(5, np.float32)
    one = TrajectoryGroup(
        0, 0, "a cat", {}, np.zeros((5, 3, 1, 1, 1), np.float16), zeros[:, None] + np.zeros(2, np.float32), zeros, 0, ""
    )
    source: BatchSource[int] = BatchSource(
        ReplayBuffer(groups),
        lambda handles: [one for _ in handles],
        run_seed=0,
        batch_groups=batch_groups,
        step_weights=step_weights(range(2), 0.9),
        tuple_size=2,
        tuples=1,
        tuple_choice="uniform",
        ties="random",
        step_draws=1,
        micro_batch=None,
        share=(0, workers),
        device=torch.device("cpu"),
    )
    source.begin_stage(0, range(groups))
    fetched = np.array([source.take(step).pulled_bytes for step in range(steps)]) * (GROUP_BYTES / one.nbytes)
    return {
        "workers": workers,
        "first_step_gb": fetched[0] / 1e9,
        "first_hundred_steps_gb": fetched[:100].sum() / 1e9,
        "stage_gb": fetched.sum() / 1e9,
    }


def archived(groups: int) -> dict[str, float]:
    """What writing groups of SD1.5's size to segments takes of the driver's CPU, the kernel's part included."""
    zeros = np.zeros(5, np.float32)
    latents = np.random.default_rng(0).standard_normal((5, 51, 4, 64, 64)).astype(np.float16)
    one = TrajectoryGroup(0, 0, "a cat", {}, latents, np.zeros((5, 50), np.float32), zeros, 0, "")
    report = UnitReport(WorkUnit(0, 0, (0,), ("a cat",), 0), ())
    with tempfile.TemporaryDirectory() as directory:
        used = time.process_time()
        for index in range(groups):
            write_segment(segment_path(Path(directory), 0, index), report, [one])
        return {"segment_mb": one.nbytes / 1e6, "cpu_ms_a_segment": 1000 * (time.process_time() - used) / groups}
