"""The user's own command on hosts that share one directory: the bytes of one process, and who sends and listens."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from machines.cluster import ADDRESSES, DASHBOARD, ROLES, SAMPLERS, Cluster
from machines.host import ROOT, Host
from machines.runs import LARGE, Run, Runs

pytestmark = [pytest.mark.hosts, pytest.mark.ray, pytest.mark.timeout(1500)]

IDLE_S = 5.0
SECURITY = (ROOT / "deploy" / "SECURITY.md").read_text("utf-8")


@dataclass
class Watched:
    """A run, what passed the hosts' cards while it sampled and trained, and who listened then."""

    run: Run
    calm: Path
    passed: dict[str, dict[str, float]]  # host → `rx` and `tx`, without what passes where no run is on
    listening: dict[str, set[tuple[str, str, int]]]


def counted(cluster: Cluster) -> dict[str, dict[str, int]]:
    return {name: host.counted() for name, host in cluster.hosts.items()}


@pytest.fixture(scope="module")
def watched(cluster: Cluster, runs: Runs) -> Watched:
    before, began = counted(cluster), time.monotonic()
    time.sleep(IDLE_S)
    after, idle_s = counted(cluster), time.monotonic() - began
    rates = {host: {way: (after[host][way] - n) / idle_s for way, n in ways.items()} for host, ways in before.items()}

    project = runs.project("watched", **LARGE)
    run = runs.begin(project)
    run.until(lambda: run.rows("telemetry", kind="phase"), "the base model is judged")
    before, began = counted(cluster), time.monotonic()
    run.until(lambda: run.units(stage=1), "the second stage begins")
    listening = {name: host.listening() for name, host in cluster.hosts.items()}
    run.finish()
    after, seconds = counted(cluster), time.monotonic() - began
    passed = {
        host: {way: after[host][way] - n - rates[host][way] * seconds for way, n in ways.items()}
        for host, ways in before.items()
    }
    print(f"{seconds:.0f} s; bytes: {passed}; idle, a second: {rates}")
    return Watched(run, runs.calm(project), passed, listening)


def test_the_job_has_the_bytes_of_one_process(watched: Watched) -> None:
    assert "succeeded" in watched.run.said
    watched.run.assert_same(watched.calm)
    assert not watched.run.faults()


def test_both_samplers_hosts_worked(watched: Watched) -> None:
    calls = watched.run.calls()
    assert set(calls) == set(SAMPLERS)
    assert sum(calls.values()) >= 24


def test_groups_travel_from_samplers_to_the_learner_once_a_stage(watched: Watched) -> None:
    """By the interfaces' counters and by the run's own account; only the learner's host takes them in."""
    stored = sum(row["replay/bytes"] for row in watched.run.rows("metrics", kind="stage"))
    pulled = sum(row.get("replay/pulled_bytes", 0) for row in watched.run.rows("telemetry", kind="phase"))
    assert 0.8 * stored < pulled <= stored  # a batch need not draw every group
    assert watched.passed["learner"]["rx"] == pytest.approx(pulled, rel=0.1)
    assert sum(watched.passed[name]["tx"] for name in SAMPLERS) == pytest.approx(pulled, rel=0.1)
    assert watched.passed["head"]["rx"] < 0.2 * pulled


def named_by_the_threat_model() -> list[tuple[set[int], str, set[str]]]:
    """Ports (none: any above 1023), on which hosts, at which addresses; from the table of deploy/SECURITY.md."""
    rows = re.findall(r"^\| ([\d, ]+|above 1023) \| (head|every host) \| ([^|]+) \|", SECURITY, flags=re.M)
    assert len(rows) == 9
    return [
        ({int(n) for n in re.findall(r"\d+", ports)} - {1023}, where, set(at.split(", "))) for ports, where, at in rows
    ]


def kind_of(address: str, host: str) -> str:
    address = address.removeprefix("::ffff:")
    known = {"127.0.0.1": "loopback", "::1": "loopback", "*": "all addresses", "0.0.0.0": "all addresses",
             "::": "all addresses", ADDRESSES[host]: "its address"}  # fmt: skip
    return known[address]


@pytest.mark.parametrize("host", ROLES)
def test_nothing_listens_that_the_threat_model_does_not_name(watched: Watched, host: str) -> None:
    named = named_by_the_threat_model()
    assert {port for _, _, port in watched.listening[host]} >= {22, 8076, 8080}
    for process, address, port in watched.listening[host]:
        at = kind_of(address, host)
        own = [row for row in named if port in row[0]] or [row for row in named if not row[0]]
        assert any(where in (host, "every host") and at in places for _, where, places in own), (process, address, port)
        assert port > 1023 or process == "sshd"


def test_a_client_listens_to_nobody_else(watched: Watched) -> None:
    assert {kind_of(address, "client") for _, address, _ in watched.listening["client"]} == {"loopback"}


@pytest.fixture
def without_token(cluster: Cluster) -> Iterator[Host]:
    cluster.client.run("mkdir away && mv .ray/auth_token away/")
    yield cluster.client
    cluster.client.run("mv away/auth_token .ray/ && rmdir away")


@pytest.mark.parametrize(
    ("token", "said"), [({}, "it asks for a token"), ({"RAY_AUTH_TOKEN": "ab" * 32}, "its token is another one")]
)
def test_a_client_without_the_token_gets_one_line(without_token: Host, token: dict[str, str], said: str) -> None:
    """And exit code 2, before anything is done."""
    mode = {"RAY_AUTH_MODE": "token"} if token else {}
    address = {"RAY_ADDRESS": f"{ADDRESSES['head']}:6379", "PYTHONPATH": str(ROOT)}
    line = "python -m raydense.cli train --out /tmp/never"
    refused = without_token.run(line, check=False, **address, **mode, **token)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert f"the cluster refuses us: {said}; set RAY_AUTH_MODE=token" in refused.stderr


ASK = """
import sys, urllib.error, urllib.request
try:
    print(urllib.request.urlopen(sys.argv[1], timeout=20).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


@pytest.mark.parametrize(
    "asked",
    [
        f"127.0.0.1:{DASHBOARD}/api/jobs/",
        f"127.0.0.1:{DASHBOARD}/nodes?view=summary",
        f"{ADDRESSES['sampler-0']}:52365/api/job_agent/jobs/",
    ],
)
def test_ray_tells_a_client_without_the_token_nothing(without_token: Host, asked: str) -> None:
    without_token.write("ask.py", ASK)
    assert without_token.run(f"python ask.py http://{asked}").stdout.strip() == "401"
