"""Where actors and groups land in a cluster of several nodes, what waits is demand, how the dashboard lists actors.

no plain twin: takes a cluster of several nodes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

CLUSTER = """
import json, time
import numpy as np
import ray
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.cluster_utils import Cluster
from ray.experimental.locations import get_object_locations
from actors.dispatch import Deadlines
from actors.ray_departures import Departures
from actors.ray_fleet import RayFleet
from learner.ray_learner import RayLearner
from raydense.core.types import PolicyWeights, UnitReport, WorkUnit

SPOT = {"ray.io/market-type": "spot", "raydense/role": "sampler"}

class Idle:  # draws a megabyte and learns nothing: where it is placed is the question
    def weights(self): return ray.get_runtime_context().get_node_id()
    def sample(self, unit, weights): return UnitReport(unit, ()), [np.ones(2**17)]

head = {"num_cpus": 4, "num_gpus": 1, "labels": {"ray.io/market-type": "on-demand"}, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=head)
on_demand = cluster.head_node.node_id
spot = [cluster.add_node(num_cpus=4, num_gpus=1, labels=SPOT).node_id]
ray.init(address=cluster.address, log_to_driver=False)

stable = {"ray.io/market-type": "!spot"}
learner = RayLearner(lambda fetch, gang: Idle(), num_cpus=1, num_gpus=1, labels=stable, run="seven")
learner_node = learner.started().weights()
fleet = RayFleet(lambda name: Idle(), maximum=2, minimum=1, num_cpus=1, num_gpus=1,
                 deadlines=Deadlines(60.0, 10.0, 60.0), patience_s=60.0, run_seed=0,
                 labels={"raydense/role": "sampler"}, run="seven",
                 departures=Departures(lambda report, groups: learner.fetch_ahead(groups), lambda: learner.nodes))
deadline = time.monotonic() + 60
while not (demand := get_cluster_status(cluster.address).resource_demands.ray_task_actor_demand):
    assert time.monotonic() < deadline
    time.sleep(0.5)
bundles = [[dict(b.bundle), b.count] for d in demand for b in d.bundles_by_count]
fleet.wait_ready()
spot.append(cluster.add_node(num_cpus=4, num_gpus=1, labels=SPOT).node_id)
while fleet.live < 2:
    time.sleep(0.2)
handles = list(fleet._actors.values())
fleet.broadcast(PolicyWeights.of(0, {"a": np.zeros(3, np.float32)}))
units = fleet.collect([WorkUnit(0, i, (i,), ("a cat",), 0) for i in range(20)])
groups = [group for _, unit in units for group in unit]
deadline = time.monotonic() + 60
while any(learner_node not in place["node_ids"] for place in get_object_locations(groups).values()):
    assert time.monotonic() < deadline
    time.sleep(0.2)
print(json.dumps({
    "learner_node": learner_node, "learner_nodes": sorted(learner.nodes), "groups": len(groups),
    "on_demand": on_demand, "spot": spot, "demand": bundles,
    "sampler_nodes": [name for name, _ in ray.get([handle.ready.remote() for handle in handles])],
    "names": sorted(actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)),
}))
ray.shutdown()
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def placed(warm_python: Path) -> dict[str, Any]:
    directory = Path("/tmp") / f"rdn{os.getpid()}"  # short: the paths of sockets are limited to 107 bytes
    directory.mkdir()
    environment = {**os.environ, "RAY_TMPDIR": str(directory)}
    command = [warm_python, "-c", CLUSTER]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    shutil.rmtree(directory, ignore_errors=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_learner_is_kept_off_spot_nodes(placed: dict[str, Any]) -> None:
    assert placed["learner_node"] == placed["on_demand"]


def test_groups_are_on_the_learners_node_before_it_asks_for_any(placed: dict[str, Any]) -> None:
    assert placed["learner_nodes"] == [placed["learner_node"]]
    assert placed["groups"] == 20  # and no sampler is left waiting for its first ones to leave


def test_samplers_are_spread_over_the_nodes_with_their_label(placed: dict[str, Any]) -> None:
    ids = [re.search(r"\((\w{8})\)$", name)[1] for name in placed["sampler_nodes"]]  # as a person finds them again
    assert sorted(ids) == sorted(node[:8] for node in placed["spot"])


def test_a_sampler_without_a_node_is_what_the_autoscaler_sees_as_demand(placed: dict[str, Any]) -> None:
    assert placed["demand"] == [[{"CPU": 1.0, "GPU": 1.0}, 1]]


def test_actors_are_listed_by_run_and_role(placed: dict[str, Any]) -> None:
    assert placed["names"] == ["seven/learner", "seven/sampler-0", "seven/sampler-1"]
