"""The cluster of `ray_cluster.yaml` on hosts of this machine, and runs on it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from machines.cluster import Cluster
from machines.runs import MODELS, SHARED, Runs, on_the_hosts
from machines.switch import FREE

SYSTEM = {  # a host that is silent for about 15 s counts as lost, instead of Ray's minute: see deploy/README.md
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 4000,
    "health_check_failure_threshold": 3,
}


@pytest.fixture(scope="session")
def namespaces() -> None:
    tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no network namespaces here: {tried.stderr.strip()}")


@pytest.fixture(scope="session")
def models(pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    shutil.copytree(pipeline_dir, directory / "pipeline")
    (directory / "train.txt").write_text("a cat\na dog\na red fox\n")
    (directory / "unseen.txt").write_text("a hen\na cow\n")
    return directory


@pytest.fixture(scope="session")
def cluster_and_shared(
    namespaces: None, models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Cluster, Path]]:
    shared = tmp_path_factory.mktemp("shared")
    cluster = Cluster({str(SHARED): shared, str(MODELS): models}, SYSTEM)
    try:
        cluster.start()
        yield cluster, shared
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def cluster(cluster_and_shared: tuple[Cluster, Path]) -> Cluster:
    return cluster_and_shared[0]


@pytest.fixture
def whole_again(cluster: Cluster) -> Iterator[None]:
    """Whatever a test did to the links, the next one finds them free."""
    yield
    for host in cluster.hosts.values():
        host.port.set(FREE)


@pytest.fixture(scope="session")
def runs(cluster_and_shared: tuple[Cluster, Path], small_values: dict[str, Any]) -> Runs:
    return Runs(*cluster_and_shared, on_the_hosts(small_values))
