"""Jobs that a pool is at work on, as its caller sees them: outcomes in order of arrival."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from actors.dispatch import Job
from raydense.core.types import UnitReport

TICK_S = 0.1  # between two looks at whether the pool still lives, where nothing arrives


class JobCollection:
    """Jobs under way; see `raydense.core.interfaces.Collection`.

    Args:
        arrived: where their outcomes come.
        check: raises what has ended the fleet, if anything has.
        give_up: forgets those that nobody has begun.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        arrived: queue.SimpleQueue[tuple[Job, Any]],
        check: Callable[[], None],
        give_up: Callable[[], None],
    ) -> None:
        self.jobs = jobs
        self._arrived, self._check, self._give_up = arrived, check, give_up
        self._left = len(jobs)

    def __iter__(self) -> JobCollection:
        return self

    def __next__(self) -> tuple[UnitReport, Sequence[Any]]:
        if not self._left:
            raise StopIteration
        result: tuple[UnitReport, Sequence[Any]] = self._take()[1]
        return result

    def outcomes(self) -> Iterator[tuple[Job, Any]]:
        """The jobs with what came of each, in order of arrival."""
        while self._left:
            yield self._take()

    def ready(self) -> bool:
        return not self._arrived.empty()

    def close(self) -> None:
        self._give_up()

    def _take(self) -> tuple[Job, Any]:
        while True:
            try:
                outcome = self._arrived.get(timeout=TICK_S)
            except queue.Empty:
                self._check()
            else:
                self._left -= 1
                return outcome
