"""`ray up ray_cluster.yaml` itself, over SSH, with another provider: up, submit, watch, exec, down.

Its hosts are its own, and gone before the other tests' begin.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from machines.cluster import ADDRESSES, FILE, PATIENCE, ROLES, Cluster
from machines.host import HOME, ROOT, wait_until
from machines.runs import MODELS, PACKAGES, SHARED, Run, Runs, on_the_hosts

pytestmark = [pytest.mark.hosts, pytest.mark.ray, pytest.mark.timeout(1500)]

DOCKER = ROOT / "tests" / "support" / "machines" / "docker.sh"
LOCAL = {  # `type: local` is this provider too, but takes no node types
    "type": "external",
    "module": "ray.autoscaler._private.local.node_provider.LocalNodeProvider",
    "head_ip": ADDRESSES["head"],
    "worker_ips": [ADDRESSES[name] for name in ROLES if name != "head"],
}
UNSAID = {  # what Ray adds for `type: aws`, and not for an external provider
    "cluster_synced_files": [],
    "file_mounts_sync_continuously": False,
    "initialization_commands": [],
    "rsync_filter": [],
    "worker_setup_commands": [],
}
STATE = {  # which the local provider keeps on each machine for itself, and version 2 of the autoscaler does not begin
    address: {"tags": {"ray-node-type": "worker"}, "state": "terminated"} for address in LOCAL["worker_ips"]
} | {ADDRESSES["head"]: {"tags": {"ray-node-type": "head", "ray-user-node-type": "head"}, "state": "running"}}
FILES = (*PACKAGES, "pyproject.toml", "README.md", "LICENSE")
IMAGE = {  # what the container's image has: a PATH, here with packages that pip need not fetch
    "PIP_NO_INDEX": "1",
    "PIP_NO_DEPS": "1",
    "PIP_NO_BUILD_ISOLATION": "0",  # which switches it off
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_ROOT_USER_ACTION": "ignore",
    **{f"RAY_{name}": value for name, value in PATIENCE.items()},
}


def with_local_provider() -> str:
    """The file's own text, but for the provider's section."""
    head, rest = FILE.read_text("utf-8").split("\nprovider:\n")
    section, tail = rest.split("\nauth:\n")
    assert "type: aws" in section
    return f"{head}\n{yaml.safe_dump({**UNSAID, 'provider': LOCAL})}\nauth:\n{tail}"


def test_the_provider_is_all_that_differs() -> None:
    from ray.autoscaler._private.util import fillout_defaults

    ours, theirs = (yaml.safe_load(text) for text in (FILE.read_text("utf-8"), with_local_provider()))
    assert ours.pop("provider")["type"] == "aws"
    assert theirs.pop("provider") == LOCAL
    assert fillout_defaults({**ours, "provider": {"type": "aws"}}) == {**theirs, "provider": {"type": "aws"}}


class Up:
    """A cluster that `ray up` has made, and `ray …` of the client."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        for host in cluster.hosts.values():
            variables = {**host.environment, **IMAGE}
            host.write(".bashrc", "".join(f"export {name}={value}\n" for name, value in variables.items()))
            host.run(f"install {DOCKER} {sys.prefix}/bin/docker")
        head = cluster.hosts["head"]
        for name in ("id_ed25519", "config"):  # AWS's key pair, that `ray up` brings to the head
            head.write(f".ssh/{name}", cluster.client.run(f"cat .ssh/{name}").stdout)
        head.write("/tmp/ray/cluster-raydense.state", json.dumps(STATE))
        cluster.client.write("raydense/ray_cluster.yaml", with_local_provider())
        cluster.client.run(f"cp -r {ROOT}/{{{','.join(FILES)}}} raydense/")
        cluster.client.run("ray get-auth-token --generate")

    def ray(self, verb: str, *arguments: str, check: bool = True) -> str:
        """`ray VERB ray_cluster.yaml …`; what it says."""
        line = f"cd raydense && ray {verb} ray_cluster.yaml {' '.join(arguments)} 2>&1"
        return self.cluster.client.run(line, check=check, timeout_s=900).stdout

    def on_head(self, command: str) -> str:
        return self.ray("exec", repr(f"RAY_AUTH_MODE=token {command}"))


@dataclass
class Brought:
    """A run on a cluster that came with it, as deploy/README.md says."""

    up: Up
    run: Run
    calm: Path
    status: str  # of the job, by the Jobs API
    nodes: str  # `ray status` of the head, as the run ends


@pytest.fixture(scope="module")
def brought(
    namespaces: None, models: Path, tmp_path_factory: pytest.TempPathFactory, small_values: dict[str, Any]
) -> Iterator[Brought]:
    shared = tmp_path_factory.mktemp("shared")
    cluster = Cluster({str(SHARED): shared, str(MODELS): models})
    client = cluster.client
    try:
        runs, up = Runs(cluster, shared, on_the_hosts(small_values)), Up(cluster)
        for tries_left in (2, 1, 0):  # on a busy machine the head may need longer than the half minute that Ray has
            if "Useful commands" in up.ray("up", "-y", check=not tries_left):
                break
        client.start("cd raydense && exec ray dashboard ray_cluster.yaml")  # it ends with its host
        wait_until(lambda: cluster.job("list", check=False).returncode == 0, 240, "the jobs API")
        client.run("mkdir scorer && cp code/bright.py scorer")  # all else is installed
        wanted = {"samplers.count": "null", "samplers.min": 2, "samplers.max": 2, "samplers.autoscale": "true"}
        run = runs.begin(project := runs.project("up"), working_dir=HOME / "scorer", **wanted)
        run.finish()
        nodes = up.on_head("ray status")
        yield Brought(up, run, runs.calm(project), cluster.job("status", run.job_id).stdout, nodes)
    finally:
        cluster.stop()


def test_a_run_brings_its_nodes_and_has_the_bytes_of_one_process(brought: Brought) -> None:
    brought.run.assert_same(brought.calm)
    assert not brought.run.faults()
    assert set(brought.run.calls()) == {"sampler-0", "sampler-1"}  # by their label


def test_it_can_be_watched(brought: Brought) -> None:
    """By the Jobs API through SSH, and by `ray exec`."""
    assert "succeeded" in brought.status
    there, _, pending = brought.nodes.partition("Pending:")
    assert sorted(re.findall(r"^ (\d+ \w+)", there, flags=re.M)) == ["1 head", "1 learner", "2 sampler"]
    assert pending.lstrip().startswith("(no pending nodes)")


def test_down_leaves_nothing(brought: Brought) -> None:
    cluster = brought.up.cluster
    brought.up.ray("down", "-y")
    left = {name: cluster.hosts[name].run("ps -e -o comm=").stdout.split() for name in ROLES}
    assert not {name: found for name, words in left.items() if (found := {"raylet", "gcs_server"} & set(words))}
    assert cluster.job("list", check=False).returncode != 0
