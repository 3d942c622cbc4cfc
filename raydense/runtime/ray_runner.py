"""The run's components as Ray actors; the stage loop on them is the local one, unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from actors.ray_fleet import RayFleet
from learner.ray_learner import RayLearner
from raydense.config import Config
from raydense.runtime.build import build_learner, build_sampler
from raydense.runtime.ray_cluster import check_resources, ray_session


@contextmanager
def build_on_ray(config: Config) -> Iterator[tuple[RayFleet, RayLearner]]:
    """Starts fleet and learner side by side, and stops them at the end."""
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
            learner.wait_ready()
            yield fleet, learner
        finally:
            fleet.shutdown()
            learner.shutdown()
