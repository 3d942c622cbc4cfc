"""Hosts that are lost in the middle of a run: what is lost with them, when it shows, when all is whole again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from machines.cluster import SAMPLERS, Cluster
from machines.host import wait_until
from machines.runs import SMALL, Run, Runs
from machines.switch import CUT, FREE, Port

pytestmark = [
    pytest.mark.hosts,
    pytest.mark.ray,
    pytest.mark.timeout(1500),
    pytest.mark.usefixtures("whole_again"),
]

HELD = 1000.0  # seconds that a unit takes until its pace is set anew
PATIENT = {"samplers.hang_floor_s": 2000}


def live(run: Run) -> int:
    """Samplers, as the driver last saw them."""
    rows = [row for row in run.rows("telemetry") if "fleet/live_samplers" in row]
    return int(rows[-1]["fleet/live_samplers"]) if rows else 0


@dataclass
class Loss:
    """A host that was cut off for longer than the health check, as seconds after the cut."""

    noticed_s: float  # by the driver
    rejoined_s: float  # after the link was whole: its Ray is up again
    working_s: float  # after the link was whole: it delivers


@dataclass
class Lossy:
    run: Run
    calm: Path
    losses: dict[str, Loss]


def lose(cluster: Cluster, run: Run, name: str, cut: Callable[[Port], None], noticed: Callable[[], Any]) -> Loss:
    """Cuts a host off until the driver knows, heals the link, starts Ray there anew, and waits until it works."""
    host = cluster.hosts[name]
    cut(host.port)
    noticed_s = run.until(noticed, f"the driver notices that {name} is cut off")
    run.pace(HELD)  # so that there is work left for it
    host.port.set(FREE)
    healed = time.time()
    wait_until(lambda: host.run("pgrep -x raylet", check=False).returncode, 120, f"the old Ray of {name} ends")
    cluster.join(name)
    rejoined_s = time.time() - healed
    steps = len(run.rows("metrics", kind="step"))
    if name == "learner":
        run.pace(0.2)
        run.until(lambda: len(run.rows("metrics", kind="step")) > steps, "the learner learns again")
    else:
        run.until(lambda: run.calls("begun", since=healed)[name] > 0, f"{name} works again")
    working_s = time.time() - healed
    run.pace(4.0)
    print(
        f"{name}: noticed after {noticed_s:.1f} s, rejoined {rejoined_s:.1f} s, working {working_s:.1f} s after healing"
    )
    return Loss(noticed_s, rejoined_s, working_s)


@pytest.fixture(scope="module")
def lossy(cluster: Cluster, runs: Runs) -> Lossy:
    project = runs.project("lossy", pace_s=4.0, **SMALL)
    run = runs.begin(project, **PATIENT)
    losses = {}
    run.until(lambda: run.arrived(0, 2), "units arrive")
    losses["sampler-1"] = lose(cluster, run, "sampler-1", lambda port: port.set(CUT), lambda: live(run) == 1)

    def cut_one_way(port: Port) -> None:
        port.up = CUT

    run.until(lambda: live(run) == 2, "both work")
    losses["sampler-0"] = lose(cluster, run, "sampler-0", cut_one_way, lambda: live(run) == 1)
    run.pace(0.2)
    stage = len(run.rows("metrics", kind="stage"))
    run.until(lambda: run.rows("metrics", kind="step", stage=stage), "the next stage trains")
    losses["learner"] = lose(
        cluster, run, "learner", lambda port: port.set(CUT), lambda: "the learner died" in run.said
    )
    run.pace(0.2)
    run.finish()
    return Lossy(run, runs.calm(project), losses)


def test_hosts_that_were_lost_come_back_to_the_same_run_and_change_no_byte(lossy: Lossy) -> None:
    lossy.run.assert_same(lossy.calm)
    print(lossy.losses, lossy.run.faults())


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_lost_samplers_host_costs_at_most_what_it_held(lossy: Lossy, name: str) -> None:
    faults = lossy.run.faults()
    assert faults["deaths"] == 2
    assert faults["lost"] <= 2 * 2  # in flight, at each of the two
    assert lossy.losses[name].noticed_s < 30


# -- the head ----------------------------------------------------------------------------------------------------------


def test_a_restarted_head_leaves_a_run_that_continues(cluster: Cluster, runs: Runs) -> None:
    """The job dies with it; the work since the last checkpoint is lost, and nothing else."""
    project = runs.project("headless", pace_s=0.3, **SMALL)
    run = runs.begin(project)
    run.until(lambda: run.arrived(1, 3), "the second stage")
    cluster.restart()
    resumed = runs.resume(project)
    said = resumed.finish()
    assert "continuing from stage-0001" in said
    resumed.assert_same(runs.calm(project))
