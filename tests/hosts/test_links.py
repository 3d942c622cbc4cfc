"""Links that are slow, lossy or cut in the middle of a run: what is lost, when it shows, when all is whole again."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from machines.cluster import Cluster
from machines.host import wait_until
from machines.runs import LARGE, Run, Runs
from machines.switch import CUT, FREE, Port, Way

pytestmark = [pytest.mark.hosts, pytest.mark.ray, pytest.mark.timeout(1500)]

SMALL = {"sampler": {"unit_prompts": 1}, "stage": {"count": 3, "groups": 16, "steps": 24}}
HELD = 1000.0  # seconds that a unit takes until its pace is set anew
PATIENT = {"samplers.hang_floor_s": 2000}
FAR = Way(delay_s=0.05, loss=0.02)
TEN_MBIT = Way(bytes_a_second=10e6 / 8)
SAMPLERS = ("sampler-0", "sampler-1")


@pytest.fixture(autouse=True)
def _whole_again(cluster: Cluster) -> Any:
    yield
    for host in cluster.hosts.values():
        host.port.set(FREE)


def units(run: Run, stage: int, count: int) -> Callable[[], bool]:
    return lambda: len(run.units(stage=stage)) >= count


def live(run: Run) -> int:
    """Samplers, as the driver last saw them."""
    rows = [row for row in run.rows("telemetry") if "fleet/live_samplers" in row]
    return int(rows[-1]["fleet/live_samplers"]) if rows else 0


# -- links that stay -------------------------------------------------------------------------------------------------


def test_a_short_cut_distance_and_loss_lose_nothing(cluster: Cluster, runs: Runs) -> None:
    """Stage 1: a sampler's host is cut off for 4 s. Stage 2: 50 ms and 2 % of the frames lost at all three workers."""
    project = runs.project("weather", pace_s=0.5, **SMALL)
    run = runs.begin(project)
    run.until(units(run, 0, 2), "units arrive")
    cluster.hosts["sampler-1"].port.set(CUT)
    time.sleep(4)
    cluster.hosts["sampler-1"].port.set(FREE)
    run.until(units(run, 1, 1), "the second stage")
    for name in ("learner", *SAMPLERS):
        cluster.hosts[name].port.set(FAR)
    run.until(units(run, 2, 1), "the third stage")
    for name in ("learner", *SAMPLERS):
        cluster.hosts[name].port.set(FREE)
    run.finish()
    run.assert_same(runs.calm(project))
    assert not run.faults()  # none died, none was tried twice
    for stage in range(3):
        assert sorted(unit["unit"] for unit in run.units(stage=stage)) == list(range(16))
    assert set(run.calls()) == set(SAMPLERS)


def seconds(run: Run, phase: str) -> list[float]:
    """Of every stage."""
    return [row[f"phase/{phase}_s"] for row in run.rows("telemetry", kind="phase") if f"phase/{phase}_s" in row]


def test_a_slow_link_holds_nobody_up_while_they_sample(cluster: Cluster, runs: Runs) -> None:
    """Stage 2: one host at 10 Mbit/s. Its groups stay there until the learner wants them, and that waits for them."""
    project = runs.project("slow", **LARGE)
    run = runs.begin(project)
    run.until(units(run, 0, 12), "a stage is sampled")
    run.until(lambda: run.rows("metrics", kind="step", stage=0), "it is learned from")
    cluster.hosts["sampler-1"].port.set(TEN_MBIT)
    run.finish()
    run.assert_same(runs.calm(project))
    assert not run.faults()
    (first, second), (before, learning) = seconds(run, "sampling"), seconds(run, "training")
    shares = [Counter(unit["sampler"] for unit in run.units(stage=stage)) for stage in (0, 1)]
    print(
        f"sampling {first:.1f} s, then {second:.1f} s; training {before:.1f} s, then {learning:.1f} s; units {shares}"
    )
    assert second < 2 * first
    (stored,) = (row["replay/bytes"] for row in run.rows("metrics", kind="stage", stage=1))
    assert learning < before + 2 * stored / TEN_MBIT.bytes_a_second


# -- hosts that are lost ---------------------------------------------------------------------------------------------


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
    run.until(units(run, 0, 2), "units arrive")
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
    run.until(units(run, 1, 3), "the second stage")
    cluster.restart()
    resumed = runs.resume(project)
    said = resumed.finish()
    assert "continuing from stage-0001" in said
    resumed.assert_same(runs.calm(project))


# -- and all of it, at random ------------------------------------------------------------------------------------------


def test_a_random_schedule_of_faults_changes_no_byte(cluster: Cluster, runs: Runs) -> None:
    draws = random.Random(5)
    project = runs.project("random", pace_s=0.4, **SMALL)
    run = runs.begin(project)
    run.until(units(run, 0, 1), "units arrive")
    injected = []
    while not run.ended and len(injected) < 12:
        name = draws.choice(["learner", *SAMPLERS])
        way = draws.choice([CUT, CUT, FAR, TEN_MBIT, Way(loss=0.3)])
        direction = draws.choice(["up", "down", "both"])
        for side in ("up", "down"):
            if direction in (side, "both"):
                setattr(cluster.hosts[name].port, side, way)
        time.sleep(draws.uniform(0.5, 4.0))
        cluster.hosts[name].port.set(FREE)
        injected.append((name, direction, way))
        time.sleep(draws.uniform(0.0, 1.0))
    run.finish()
    run.assert_same(runs.calm(project))
    print(len(injected), run.faults())
