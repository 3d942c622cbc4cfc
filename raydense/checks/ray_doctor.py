"""The doctor's look at Ray: address, authentication, room for the actors, object store."""

from __future__ import annotations

import os
from collections.abc import Iterator

import ray

from raydense.checks.check import Check
from raydense.config import Config, ConfigError
from raydense.fleets.ray_cluster import check_resources, ray_session
from raydense.planning.dry_run import Plan, size
from raydense.planning.placement import place


def check_ray(config: Config, plan: Plan) -> Iterator[Check]:
    """Joins the cluster that a run would use, or starts the private one."""
    address = os.environ.get("RAY_ADDRESS", "")
    where = f"RAY_ADDRESS={address}" if address else "a private cluster (no RAY_ADDRESS)"
    try:
        with ray_session():
            yield Check("Ray", True, f"{where}, {len(ray.nodes())} nodes, authentication {_authentication()}")
            total = ray.cluster_resources()
            try:
                check_resources(config, place(config, int(total.get("GPU", 0))))
                room = f"{total.get('CPU', 0):g} CPUs, {total.get('GPU', 0):g} GPUs, {size(total.get('memory', 0))}"
                yield Check("placement", True, f"{room}: every actor has its place")
            except ConfigError as error:
                yield Check("placement", False, str(error))
            store = total.get("object_store_memory", 0.0)
            spills = "" if store >= plan.replay_bytes else ": it will spill to disk"
            yield Check("object store", True, f"{size(store)} for groups of {size(plan.replay_bytes)}{spills}")
    except ConfigError as error:
        yield Check("Ray", False, str(error))


def _authentication() -> str:
    return os.environ.get("RAY_AUTH_MODE") or "by default"
