"""Everything in one process, without Ray: the handle of a group is the group itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from actors.versions import LiveVersions
from raydense.config import Config
from raydense.core.interfaces import MAX_UNIT_FAILURES, Fleet, InertWeights, Learner, Sampler, UnitFailed
from raydense.core.types import PolicyWeights, Rendered, RenderUnit, TrajectoryGroup, WorkUnit
from raydense.fleets.archive import ArchivingFleet
from raydense.fleets.collecting import SerialCollection
from raydense.pipelines.base_model import BaseModel
from raydense.pipelines.pipeline_files import PipelineFiles
from raydense.planning.placement import check_devices, check_one_worker, check_shared_memory
from raydense.wiring.devices import resolve_device
from raydense.wiring.roles import build_learner, build_sampler

Unit = TypeVar("Unit", WorkUnit, RenderUnit)
Result = TypeVar("Result")


class LocalFleet:
    """One sampler in this process; a collection is sampled when it is waited for. Args: run_seed: for messages."""

    live = 1

    def __init__(self, sampler: Sampler, run_seed: int) -> None:
        self._sampler, self._run_seed = sampler, run_seed
        self._versions = LiveVersions(lambda weights: weights)
        self.faults: Counter[str] = Counter()

    def broadcast(self, weights: PolicyWeights) -> None:
        self._versions.add(weights)

    def collect(self, units: Iterable[WorkUnit]) -> SerialCollection[TrajectoryGroup]:
        return SerialCollection(self._try(self._sampler.sample, *job) for job in self._jobs(units))

    def render(self, units: Iterable[RenderUnit]) -> list[Rendered]:
        return [self._try(self._sampler.render, *job) for job in self._jobs(units)]

    def is_lost(self, handles: Sequence[TrajectoryGroup]) -> bool:
        return False  # they are in this process

    def _jobs(self, units: Iterable[Unit]) -> list[tuple[Unit, PolicyWeights]]:
        """Each with the weights that it names, which may be of the past when its turn comes."""
        return [(unit, self._versions[unit.weights_version]) for unit in units]

    def _try(self, method: Callable[[Unit, PolicyWeights], Result], unit: Unit, weights: PolicyWeights) -> Result:
        """The unit's result, at a later try if need be. Raises: UnitFailed."""
        for tries in range(1, MAX_UNIT_FAILURES + 1):
            try:
                return method(unit, weights)
            except InertWeights:
                raise
            except Exception as error:  # a scorer's, above all, which may ask a service that is out for a moment
                if tries == MAX_UNIT_FAILURES:
                    raise UnitFailed.after(tries, unit.describe(self._run_seed), error) from error
                self.faults["retried"] += 1
        raise AssertionError("unreachable")


def build_local(
    config: Config, pipeline: PipelineFiles, base: BaseModel, segments: Path
) -> tuple[Fleet[TrajectoryGroup], Callable[[], Learner[TrajectoryGroup]]]:
    """The fleet of a run in this process, and what makes its learner."""
    check_one_worker(config, "--local")
    check_devices(config)
    device = resolve_device(config.sampler.device, "sampler.device")
    if device.type == "cuda" and device == resolve_device(config.learner.device, "learner.device"):
        check_shared_memory(config, pipeline, torch.cuda.mem_get_info(device)[0], samplers=1)

    def same(groups: Sequence[TrajectoryGroup]) -> Sequence[TrajectoryGroup]:
        return groups

    sampler = build_sampler(config, files=pipeline)
    base.admit("the sampler", "this machine", base.look()())
    fleet = ArchivingFleet(
        LocalFleet(sampler, config.seed),
        segments,
        fetch=same,
        put=lambda group: group,
        segments=config.replay.segments,
        keep=config.replay.keep_segments,
        older=config.stage.held - 1,
    )
    return fleet, lambda: build_learner(config, fetch=same, files=pipeline)
