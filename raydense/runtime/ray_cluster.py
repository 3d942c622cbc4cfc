"""Reaching a Ray cluster, or starting a private one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from raydense.config import Config, ConfigError

NAMESPACE = "raydense"


@contextmanager
def ray_session() -> Iterator[None]:
    """Joins the cluster of a job or of RAY_ADDRESS, else starts a private one on loopback; leaves it at the end."""
    started = not ray.is_initialized()
    if started:
        ray.init(namespace=NAMESPACE, logging_level=logging.ERROR, log_to_driver=False)
    try:
        yield
    finally:
        if started:
            ray.shutdown()


def check_resources(config: Config) -> None:
    """Raises: ConfigError if the cluster as it is now cannot place every actor."""
    total = ray.cluster_resources()
    fleet, learner = config.samplers, config.learner
    for resource, key, each, own in (
        ("CPU", "num_cpus", fleet.num_cpus, learner.num_cpus),
        ("GPU", "num_gpus", fleet.num_gpus, learner.num_gpus),
    ):
        needed, available = fleet.count * each + own, total.get(resource, 0.0)
        if needed > available:
            raise ConfigError(
                f"samplers.count={fleet.count} with samplers.{key}={each:g} and learner.{key}={own:g} need {needed:g} "
                f"{resource}s, but the cluster has {available:g}; lower them or add nodes"
            )
