"""A run's metrics for Prometheus: Ray exports them on every node, and a scrape finds them by its discovery file."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from ray.util.metrics import Gauge


class RayMetricsSink:
    """`MetricSink` whose scalars are gauges `ray_raydense_<name, / as _>` with the tag `run`; pictures are left out.

    The gauge `ray_raydense_step` has the gradient steps so far. What is not finite keeps the gauge at its last value.
    """

    def __init__(self, run: str) -> None:
        self._tags = {"run": run}
        self._gauges: dict[str, Gauge] = {}

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in {"step": step, **values}.items():
            if math.isfinite(value):
                self._gauge(name).set(float(value), tags=self._tags)

    def image(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        pass

    def close(self) -> None:
        """The series end with this process."""

    def _gauge(self, name: str) -> Gauge:
        if name not in self._gauges:
            self._gauges[name] = Gauge(metric_name(name), description=f"{name} of a raydense run", tag_keys=("run",))
        return self._gauges[name]


def metric_name(name: str) -> str:
    """A metric's name as Ray takes it: `reward/monitor/clip-l` → `raydense_reward_monitor_clip_l`."""
    return "raydense_" + re.sub(r"\W", "_", name, flags=re.ASCII)
