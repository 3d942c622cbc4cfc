"""Everything in one process, without Ray: the handle of a group is the group itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from raydense.config import Config
from raydense.core.interfaces import Learner, Sampler
from raydense.core.types import PolicyWeights, Rendered, RenderUnit, TrajectoryGroup, UnitReport, WorkUnit
from raydense.runtime.build import build_learner, build_sampler


class LocalFleet:
    """One sampler in this process."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._weights: PolicyWeights | None = None

    def broadcast(self, weights: PolicyWeights) -> None:
        self._weights = weights

    def collect(self, units: Iterable[WorkUnit]) -> Iterator[tuple[UnitReport, Sequence[TrajectoryGroup]]]:
        for unit in units:
            yield self._sampler.sample(unit, self._current())

    def render(self, units: Iterable[RenderUnit]) -> list[Rendered]:
        return [self._sampler.render(unit, self._current()) for unit in units]

    def _current(self) -> PolicyWeights:
        if self._weights is None:
            raise RuntimeError("no weights were broadcast yet")
        return self._weights


def build_local(config: Config) -> tuple[LocalFleet, Learner[TrajectoryGroup]]:
    """The fleet and the learner of a run in this process."""
    return LocalFleet(build_sampler(config)), build_learner(config, fetch=lambda groups: groups)
