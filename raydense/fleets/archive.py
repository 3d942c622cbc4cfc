"""A fleet that keeps finished units on disk, and gives back those that are there already instead of sampling them."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Generic, TypeVar

from raydense.core.interfaces import Collection, Fleet, GroupsLost
from raydense.core.types import RESTORED, PolicyWeights, Rendered, RenderUnit, TrajectoryGroup, UnitReport, WorkUnit
from raydense.records.segments import SegmentError, is_written, read_segment, segment_path, write_segment

Handle = TypeVar("Handle")


class ArchivingCollection(Generic[Handle]):
    """`Collection`: what was restored, then what arrives.

    Args:
        collect: starts work on units that nobody has yet.
        write: keeps an arrival on disk. Raises GroupsLost where its node has gone: then the unit is collected again.
    """

    def __init__(
        self,
        restored: list[tuple[UnitReport, Sequence[Handle]]],
        missing: list[WorkUnit],
        collect: Callable[[list[WorkUnit]], Collection[Handle]],
        write: Callable[[UnitReport, Sequence[Handle]], None],
    ) -> None:
        self._sound, self._collect, self._write = deque(restored), collect, write
        self._coming, self._awaited, self._lost = collect(missing), len(missing), list[WorkUnit]()

    def __iter__(self) -> ArchivingCollection[Handle]:
        return self

    def __next__(self) -> tuple[UnitReport, Sequence[Handle]]:
        while not self._sound and self._awaited:
            self._take()
        if not self._sound:
            raise StopIteration
        return self._sound.popleft()

    def ready(self) -> bool:
        while not self._sound and self._coming.ready():
            self._take()
        return bool(self._sound)

    def close(self) -> None:
        self._coming.close()

    def _take(self) -> None:
        """Waits for the next arrival, and writes it; when the last has come, those that were lost are issued again."""
        report, handles = next(self._coming)
        self._awaited -= 1
        try:
            self._write(report, handles)
        except GroupsLost:
            self._lost.append(report.unit)
        else:
            self._sound.append((report, handles))
        if not self._awaited and self._lost:
            self._coming, self._awaited, self._lost = self._collect(self._lost), len(self._lost), []


class ArchivingFleet(Generic[Handle]):
    """`Fleet` around another one.

    Args:
        inner: does the sampling.
        root: of the segment files.
        fetch, put: handles → groups, and a group → its handle.
        segments: whether to write them, as `is_written` has it.
        keep: whether segments of finished stages stay.
        older: stages before the one collected whose segments are still needed; 1 where one trains meanwhile.
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
        older: int,
    ) -> None:
        self._inner, self._root, self._fetch, self._put = inner, root, fetch, put
        self._segments, self._keep, self._older = segments, keep, older
        self._checksums: dict[int, str] = {}  # by version of the weights
        self._asked: set[tuple[int, int]] = set()  # stage and index of units that samplers were asked for
        self._resampled = 0

    @property
    def faults(self) -> Mapping[str, int]:
        return {**self._inner.faults, "resampled": self._resampled}

    @property
    def live(self) -> int:
        return self._inner.live

    def broadcast(self, weights: PolicyWeights) -> None:
        self._checksums[weights.version] = weights.checksum
        self._inner.broadcast(weights)

    def render(self, units: Iterable[RenderUnit]) -> list[Rendered]:
        return self._inner.render(units)

    def collect(self, units: Iterable[WorkUnit]) -> ArchivingCollection[Handle]:
        """Units on disk first, then the others as they arrive, each written before it is handed on."""
        units = list(units)
        restored = {unit.index: found for unit in units if (found := self._restore(unit)) is not None}
        missing = [unit for unit in units if unit.index not in restored]
        if missing and not self._keep:
            self._drop_before(missing[0].stage - self._older)
        return ArchivingCollection(list(restored.values()), missing, self._collect_missing, self._write)

    def is_lost(self, handles: Sequence[Handle]) -> bool:
        return self._inner.is_lost(handles)

    def _collect_missing(self, units: list[WorkUnit]) -> Collection[Handle]:
        names = {(unit.stage, unit.index) for unit in units}
        self._resampled += len(names & self._asked)
        self._asked |= names
        return self._inner.collect(units)

    def _write(self, report: UnitReport, handles: Sequence[Handle]) -> None:
        if is_written(report.groups[0].nbytes, self._segments):
            write_segment(segment_path(self._root, report.unit.stage, report.unit.index), report, self._fetch(handles))

    def _restore(self, unit: WorkUnit) -> tuple[UnitReport, Sequence[Handle]] | None:
        """What is on disk of this unit, if it is sound and of the same weights; else it is sampled again."""
        path = segment_path(self._root, unit.stage, unit.index)
        if not path.exists():
            return None
        try:
            report, groups = read_segment(path)
        except SegmentError:
            return None
        if report.unit != unit or any(g.weights_checksum != self._checksums[unit.weights_version] for g in groups):
            return None
        return replace(report, sampler=RESTORED), [self._put(group) for group in groups]

    def _drop_before(self, stage: int) -> None:
        """A stage boundary's checkpoint needs no groups of the stages before it."""
        for finished in range(stage):
            shutil.rmtree(segment_path(self._root, finished, 0).parent, ignore_errors=True)
