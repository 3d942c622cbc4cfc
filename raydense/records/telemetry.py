"""Where a run's numbers go: `metrics.jsonl`, `telemetry.jsonl`, and every sink."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydense.core.messages import one_line
from raydense.records.metrics import JsonLines, MetricSink
from raydense.records.run_dir import RunDirectory


class RunLog:
    """Rows of named scalars, each with its `kind`, `stage` and `step` (gradient steps of the run before it).

    Metrics are deterministic and part of the result, so that failing to write them stops the run. Everything else is
    telemetry: what fails there, but for a full disk, is said once and left out from then on.

    Args:
        metrics_bytes: of an existing metrics file that are kept.
        sinks: get the scalars of every row, and the pictures.
        warn: hears of a failure.
    """

    def __init__(
        self, run_dir: RunDirectory, metrics_bytes: int, sinks: Sequence[MetricSink], warn: Callable[[str], None]
    ) -> None:
        self._excused: set[str] = set()
        self._failed: set[str] = set()  # monitors
        self._metrics = JsonLines(run_dir.metrics, keep_bytes=metrics_bytes)
        self._telemetry = JsonLines(run_dir.telemetry)
        self._sinks, self._warn = list(sinks), warn

    @property
    def metrics_bytes(self) -> int:
        """Size of the metrics file, for a checkpoint."""
        return self._metrics.size

    def metrics(self, kind: str, stage: int, step: int, values: Mapping[str, float], **notes: Any) -> None:
        """A deterministic row: `values` go to the sinks too, `notes` only into the file."""
        self._metrics.write({"kind": kind, "stage": stage, "step": step, **values, **notes})
        self._tell(lambda sink: sink.scalars(step, values))

    def telemetry(self, kind: str, stage: int, step: int, values: Mapping[str, float], **notes: Any) -> None:
        """A row of times, faults and whatever else differs from run to run."""
        try:
            self._telemetry.write({"kind": kind, "stage": stage, "step": step, **values, **notes})
        except OSError as error:
            self._excuse("telemetry.jsonl", error)
        if values:
            self._tell(lambda sink: sink.scalars(step, values))

    def monitors_failed(self, failures: Mapping[str, str], stage: int, step: int) -> None:
        """Says why a monitor failed, and enters it into the telemetry, the first time in this process."""
        for name, failure in failures.items():
            if name not in self._failed:
                self._failed.add(name)
                self.telemetry("monitor", stage, step, {}, judge=name, failure=failure)
                self._warn(f"the monitor {name} failed, and the run goes on without these scores: {failure}")

    def image(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        """A picture [h, w, 3] for the sinks; the caller keeps it in a file."""
        self._tell(lambda sink: sink.image(step, name, image))

    def close(self) -> None:
        self._metrics.close()
        self._telemetry.close()
        self._tell(lambda sink: sink.close())

    def _tell(self, call: Callable[[MetricSink], None]) -> None:
        for sink in tuple(self._sinks):
            try:
                call(sink)
            except Exception as error:  # of a network or a library: the run needs none of them
                self._sinks.remove(sink)
                self._excuse(type(sink).__name__, error)

    def _excuse(self, who: str, error: Exception) -> None:
        """Says a failure the first time. Raises: the failure, if the disk is full, which the run cannot outlive."""
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise error
        if who not in self._excused:
            self._excused.add(who)
            reason = one_line(error)
            self._warn(f"{who} failed ({reason}); the run goes on without it")


class Meter:
    """How many a second, told at most every `every_s`."""

    def __init__(self, every_s: float = 10.0) -> None:
        self._every_s = every_s
        self.restart()

    def restart(self) -> None:
        self._since, self._count = time.perf_counter(), 0

    def add(self, count: int) -> float | None:
        """The rate since it was last told, if it is time to; else None."""
        self._count += count
        elapsed = time.perf_counter() - self._since
        if elapsed < self._every_s:
            return None
        rate = self._count / elapsed
        self.restart()
        return rate


class Arrivals:
    """The pictures of one stage as they come in.

    Args:
        began: when sampling did; None where that was not seen, and then the first arrivals only start the clock.
    """

    def __init__(self, began: float | None = None) -> None:
        self._began = self._last = began
        self._count = 0

    def add(self, count: int) -> None:
        self._last = time.perf_counter()
        if self._began is None:
            self._began = self._last
        else:
            self._count += count

    @property
    def rate(self) -> float | None:
        """Pictures a second until the last arrival; None before one that can be timed."""
        if self._began is None or self._last is None or not self._count:
            return None
        return self._count / (self._last - self._began)
