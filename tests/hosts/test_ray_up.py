"""`ray up ray_cluster.yaml` itself, over SSH, with another provider: up, submit, watch, exec, down."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from machines.cluster import ADDRESSES, FILE, Cluster
from machines.host import ROOT, wait_until
from machines.runs import SHARED, Runs, on_the_hosts

pytestmark = [pytest.mark.hosts, pytest.mark.ray, pytest.mark.timeout(1500)]

IN = "cd raydense &&"
DOCKER = ROOT / "tests" / "support" / "machines" / "docker.sh"
BASHRC = """
export PATH={path} RAY_worker_niceness=0
export PIP_NO_INDEX=1 PIP_NO_BUILD_ISOLATION=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
"""
LOCAL = {  # `type: local` is this provider too, but takes no node types
    "type": "external",
    "module": "ray.autoscaler._private.local.node_provider.LocalNodeProvider",
    "head_ip": ADDRESSES["head"],
    "worker_ips": [ADDRESSES[name] for name in ("learner", "sampler-0", "sampler-1")],
}


def test_the_provider_is_all_that_differs() -> None:
    ours, theirs = yaml.safe_load(FILE.read_text("utf-8")), yaml.safe_load(with_local_provider())
    assert theirs.pop("provider") == LOCAL
    assert ours.pop("provider")["type"] == "aws"
    assert ours == theirs


def with_local_provider() -> str:
    """The file's own text, but for the provider's section."""
    head, rest = FILE.read_text("utf-8").split("\nprovider:\n")
    section, tail = rest.split("\nauth:\n")
    assert "type: aws" in section
    return f"{head}\n{yaml.safe_dump({'provider': LOCAL})}\nauth:\n{tail}"


@pytest.fixture(scope="module")
def up(make_cluster: Callable[..., Any], small_values: dict[str, Any]) -> Iterator[tuple[Cluster, Runs, str]]:
    """Hosts with SSH, Docker's stand-in and nothing else; what `ray up` says; afterwards all is taken down."""
    cluster, shared = make_cluster()
    client = cluster.client
    try:
        runs = Runs(cluster, shared, on_the_hosts(small_values))
        for host in cluster.hosts.values():
            host.write(".bashrc", BASHRC.format(path=host.environment["PATH"]))
            host.run(f"install {DOCKER} {sys.prefix}/bin/docker")
        cluster.trust("head")  # AWS's key pair, that `ray up` brings to the head
        client.run(f"cp -r {SHARED}/code raydense && cp {ROOT}/{{pyproject.toml,README.md,LICENSE}} raydense/")
        client.write("raydense/ray_cluster.yaml", with_local_provider())
        client.run("ray get-auth-token --generate")
        said = client.run("cd raydense && ray up -y ray_cluster.yaml 2>&1", timeout_s=900).stdout
        client.start("cd raydense && exec ray dashboard ray_cluster.yaml")  # until its host ends
        wait_until(lambda: cluster.job("list", check=False).returncode == 0, 240, "the jobs API")
        yield cluster, runs, said
    finally:
        cluster.stop()


def test_up_submit_watch_exec_down(up: tuple[Cluster, Runs, str]) -> None:
    """Samplers' hosts come with the demand, and all is gone at the end."""
    cluster, runs, _ = up
    client = cluster.client
    assert (
        "raydense/role"
        in client.run(f"{IN} ray exec ray_cluster.yaml 'RAY_AUTH_MODE=token ray list nodes --detail'").stdout
    )
    project = runs.project("up")
    client.run(f"rm -r {project}/raydense {project}/actors {project}/learner")  # `ray up` has installed them
    run = runs.begin(project, **{"samplers.count": "null", "samplers.max": 2, "samplers.autoscale": "true"})
    run.finish()
    run.assert_same(runs.calm(project))
    assert set(run.calls()) <= {"learner", "sampler-0", "sampler-1"}
    status = client.run(f"{IN} ray exec ray_cluster.yaml 'RAY_AUTH_MODE=token ray status'").stdout
    print(status)
    client.run(f"{IN} ray down -y ray_cluster.yaml", timeout_s=300)
    for name in ("head", "learner", "sampler-0", "sampler-1"):
        host = cluster.hosts[name]
        assert host.run("pgrep -x 'raylet|gcs_server'", check=False).returncode == 1, name
