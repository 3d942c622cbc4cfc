"""The run's components as Ray actors; the stage loop on them is the local one, unchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray

from actors.ray_fleet import RayFleet
from learner.ray_learner import RayLearner, fetch_groups
from raydense.config import Config
from raydense.core.interfaces import Fleet
from raydense.runtime.archive import ArchivingFleet
from raydense.runtime.build import build_learner, build_sampler
from raydense.runtime.ray_cluster import check_resources, ray_session


@contextmanager
def build_on_ray(config: Config, segments: Path) -> Iterator[tuple[Fleet[Any], Callable[[], RayLearner]]]:
    """Starts fleet and learner side by side, and stops them at the end; called again, the learner is a new one."""
    with ray_session():
        check_resources(config)
        learner = RayLearner(
            partial(build_learner, config), num_cpus=config.learner.num_cpus, num_gpus=config.learner.num_gpus
        )
        fleet = RayFleet(
            partial(build_sampler, config),
            count=config.samplers.count,
            num_cpus=config.samplers.num_cpus,
            num_gpus=config.samplers.num_gpus,
        )
        try:
            fleet.wait_ready()
            archive = ArchivingFleet(
                fleet,
                segments,
                fetch=fetch_groups,
                put=ray.put,
                segments=config.replay.segments,
                keep=config.replay.keep_segments,
            )
            yield archive, learner.started
        finally:
            fleet.shutdown()
            learner.shutdown()
