"""What arrives is written first; what was lost before that is collected again, and nobody waits meanwhile."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from raydense.core.interfaces import GroupsLost
from raydense.core.types import UnitReport, WorkUnit
from raydense.fleets.archive import ArchivingCollection


class Arrivals:
    """A collection whose arrivals the test decides on; waiting for one that has not come would be for ever."""

    def __init__(self, units: Sequence[WorkUnit]) -> None:
        self.units, self._left, self._here = list(units), len(units), list[WorkUnit]()

    def arrive(self, *indices: int) -> None:
        self._here += [unit for unit in self.units if unit.index in indices]

    def __iter__(self) -> Arrivals:
        return self

    def __next__(self) -> tuple[UnitReport, Sequence[str]]:
        if not self._left:
            raise StopIteration
        assert self._here, "it would wait"
        self._left -= 1
        unit = self._here.pop(0)
        return UnitReport(unit, ()), [f"group {unit.index}"]

    def ready(self) -> bool:
        return bool(self._here)

    def close(self) -> None: ...


class Archive:
    """An ArchivingCollection of four units, the first of which is on disk; `gone`: units whose node has gone."""

    def __init__(self, *gone: int) -> None:
        self.gone, self.written = list(gone), list[int]()
        self.collections: list[Arrivals] = []
        restored, *missing = [WorkUnit(0, index, (index,), ("a cat",), 0) for index in range(4)]
        self.units = ArchivingCollection([(UnitReport(restored, ()), ["group 0"])], missing, self._collect, self._write)

    def _collect(self, units: list[WorkUnit]) -> Arrivals:
        self.collections.append(Arrivals(units))
        return self.collections[-1]

    def _write(self, report: UnitReport, handles: Sequence[str]) -> None:
        if report.unit.index in self.gone:
            self.gone.remove(report.unit.index)
            raise GroupsLost("gone")
        self.written.append(report.unit.index)

    def poll(self) -> list[int]:
        """As a learner does between two steps."""
        found = []
        while self.units.ready():
            found.append(next(self.units)[0].unit.index)
        return found


def test_what_is_on_disk_comes_first_and_the_rest_as_it_arrives() -> None:
    archive = Archive()
    assert archive.poll() == [0]
    archive.collections[0].arrive(2, 1)
    assert archive.poll() == [1, 2]
    archive.collections[0].arrive(3)
    assert [report.unit.index for report, _ in archive.units] == [3]
    assert archive.written == [1, 2, 3]
    assert (archive.poll(), len(archive.collections)) == ([], 1)


@pytest.mark.parametrize("lost", [(1,), (2,), (3,), (1, 2), (2, 3), (1, 2, 3)])
def test_a_lost_group_is_collected_again_without_waiting_for_the_next(lost: tuple[int, ...]) -> None:
    archive = Archive(*lost)
    assert archive.poll() == [0]
    for index in (1, 2, 3):
        archive.collections[0].arrive(index)
        assert archive.poll() == ([] if index in lost else [index])
    _, again = archive.collections  # as soon as the last had come
    assert [unit.index for unit in again.units] == list(lost)
    assert archive.poll() == []
    again.arrive(*lost)
    assert archive.poll() == list(lost)
    assert archive.units.ready() is False
    assert list(archive.units) == []


def test_whoever_waits_gets_what_was_lost_last() -> None:
    archive = Archive(2)
    archive.collections[0].arrive(1, 2, 3)
    found = [next(archive.units)[0].unit.index for _ in range(3)]
    archive.collections[1].arrive(2)
    assert [*found, *(report.unit.index for report, _ in archive.units)] == [0, 1, 3, 2]


def test_a_group_may_be_lost_twice() -> None:
    archive = Archive(3, 3)
    archive.collections[0].arrive(1, 2, 3)
    assert archive.poll() == [0, 1, 2]
    archive.collections[1].arrive(3)
    assert archive.poll() == []
    archive.collections[2].arrive(3)
    assert archive.poll() == [3]
