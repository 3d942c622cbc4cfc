"""A fleet that keeps finished units on disk, and gives back those that are there already instead of sampling them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Generic, TypeVar

from raydense.core.interfaces import Fleet
from raydense.core.segments import SegmentError, read_segment, segment_path, write_segment
from raydense.core.types import RESTORED, PolicyWeights, Rendered, RenderUnit, TrajectoryGroup, UnitReport, WorkUnit

Handle = TypeVar("Handle")
AUTOMATIC_BYTES = 2**20  # of a group, from which on it is worth a file


class ArchivingFleet(Generic[Handle]):
    """`Fleet` around another one.

    Args:
        inner: does the sampling.
        root: of the segment files.
        fetch, put: handles → groups, and a group → its handle.
        segments: whether to write; None: where a group has at least `AUTOMATIC_BYTES`.
        keep: whether segments of finished stages stay.
    """

    def __init__(
        self,
        inner: Fleet[Handle],
        root: Path,
        fetch: Callable[[Sequence[Handle]], Sequence[TrajectoryGroup]],
        put: Callable[[TrajectoryGroup], Handle],
        *,
        segments: bool | None,
        keep: bool,
    ) -> None:
        self._inner, self._root, self._fetch, self._put = inner, root, fetch, put
        self._segments, self._keep = segments, keep
        self._checksum = ""

    @property
    def deaths(self) -> int:
        return self._inner.deaths

    @property
    def lost(self) -> int:
        return self._inner.lost

    @property
    def retried(self) -> int:
        return self._inner.retried

    def broadcast(self, weights: PolicyWeights) -> None:
        self._checksum = weights.checksum
        self._inner.broadcast(weights)

    def render(self, units: Iterable[RenderUnit]) -> list[Rendered]:
        return self._inner.render(units)

    def collect(self, units: Iterable[WorkUnit]) -> Iterator[tuple[UnitReport, Sequence[Handle]]]:
        """Units on disk first, then the others as they arrive, each written before it is handed on."""
        missing: list[WorkUnit] = []
        for unit in units:
            restored = self._restore(unit)
            if restored is None:
                missing.append(unit)
            else:
                yield restored
        if missing and not self._keep:
            self._drop_older(missing[0].stage)
        for report, handles in self._inner.collect(missing):
            if self._wanted(report):
                path = segment_path(self._root, report.unit.stage, report.unit.index)
                write_segment(path, report, self._fetch(handles))
            yield report, handles

    def _restore(self, unit: WorkUnit) -> tuple[UnitReport, Sequence[Handle]] | None:
        """What is on disk of this unit, if it is sound and of the same weights; else it is sampled again."""
        path = segment_path(self._root, unit.stage, unit.index)
        if not path.exists():
            return None
        try:
            report, groups = read_segment(path)
        except SegmentError:
            return None
        if report.unit != unit or any(group.weights_checksum != self._checksum for group in groups):
            return None
        return replace(report, sampler=RESTORED), [self._put(group) for group in groups]

    def _wanted(self, report: UnitReport) -> bool:
        if self._segments is None:
            return report.groups[0].nbytes >= AUTOMATIC_BYTES
        return self._segments

    def _drop_older(self, stage: int) -> None:
        """A stage boundary's checkpoint needs no groups of the stages before it."""
        for older in range(stage):
            shutil.rmtree(segment_path(self._root, older, 0).parent, ignore_errors=True)
