"""How long a run will still take, from how long its stages have taken in this process."""

from __future__ import annotations

import time
from collections.abc import Callable


class TimeLeft:
    """Args: stages: of the whole run. clock: seconds."""

    def __init__(self, stages: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._stages, self._clock = stages, clock
        self._began: float | None = None  # the stage at work
        self._sampled_s: float | None = None  # of it
        self._whole: list[float] = []
        self._judging_s = 0.0

    def judged(self, seconds: float) -> None:
        """The base model; the tuned one will take as long."""
        self._judging_s = seconds

    def stage_started(self) -> None:
        """Overlapped, the next one starts while this one trains: it counts from this one's end."""
        self._began = self._clock() if self._began is None else self._began

    def stage_sampled(self) -> None:
        if self._began is not None:
            self._sampled_s = self._clock() - self._began

    def stage_finished(self) -> None:
        now = self._clock()
        if self._began is not None:
            self._whole.append(now - self._began)
        self._began, self._sampled_s = now, None

    def seconds(self, stage: int, trained: float) -> float | None:
        """Until the run's end; None before the first stage trains.

        Args: stage: at work, from 0. trained: the share of its steps that is done.
        """
        if self._began is None:
            return None
        spent = self._clock() - self._began
        if self._whole:
            a_stage = sum(self._whole) / len(self._whole)
        elif trained and self._sampled_s is not None:
            a_stage = self._sampled_s + (spent - self._sampled_s) / trained
        else:
            return None
        return max(a_stage - spent, 0.0) + a_stage * (self._stages - stage - 1) + self._judging_s
