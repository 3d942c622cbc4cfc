"""Everything in one process, without Ray: the handle of a group is the group itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from raydense.config import Config
from raydense.core.interfaces import UNIT_RETRIES, Fleet, Learner, Sampler, UnitFailed
from raydense.core.types import PolicyWeights, Rendered, RenderUnit, TrajectoryGroup, UnitReport, WorkUnit
from raydense.runtime.archive import ArchivingFleet
from raydense.runtime.build import build_learner, build_sampler, resolve_device
from raydense.runtime.placement import check_shared_memory

Unit = TypeVar("Unit")
Result = TypeVar("Result")


class LocalFleet:
    """One sampler in this process."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._weights: PolicyWeights | None = None
        self.retried = self.lost = 0

    @property
    def deaths(self) -> int:
        return 0  # this process is the sampler

    def broadcast(self, weights: PolicyWeights) -> None:
        self._weights = weights

    def collect(self, units: Iterable[WorkUnit]) -> Iterator[tuple[UnitReport, Sequence[TrajectoryGroup]]]:
        for unit in units:
            yield self._try(self._sampler.sample, unit)

    def render(self, units: Iterable[RenderUnit]) -> list[Rendered]:
        return [self._try(self._sampler.render, unit) for unit in units]

    def _try(self, method: Callable[[Unit, PolicyWeights], Result], unit: Unit) -> Result:
        """The unit's result, at a later try if need be. Raises: UnitFailed."""
        weights, tries = self._current(), 0
        while True:
            try:
                return method(unit, weights)
            except Exception as error:  # a scorer's, above all, which may ask a service that is out for a moment
                tries += 1
                if tries > UNIT_RETRIES:
                    raise UnitFailed.after(tries, error) from error
                self.retried += 1

    def _current(self) -> PolicyWeights:
        if self._weights is None:
            raise RuntimeError("no weights were broadcast yet")
        return self._weights


def build_local(
    config: Config, segments: Path
) -> tuple[Fleet[TrajectoryGroup], Callable[[], Learner[TrajectoryGroup]]]:
    """The fleet of a run in this process, and what makes its learner."""
    device = resolve_device(config.sampler.device)
    if device.type == "cuda" and device == resolve_device(config.learner.device):
        check_shared_memory(config, torch.cuda.mem_get_info(device)[0])

    def same(groups: Sequence[TrajectoryGroup]) -> Sequence[TrajectoryGroup]:
        return groups

    fleet = ArchivingFleet(
        LocalFleet(build_sampler(config)),
        segments,
        fetch=same,
        put=lambda group: group,
        segments=config.replay.segments,
        keep=config.replay.keep_segments,
    )
    return fleet, lambda: build_learner(config, fetch=same)
