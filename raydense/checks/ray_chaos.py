"""`raydense chaos`: real runs on a real cluster, disturbed on purpose, must end with the undisturbed run's bytes.

The cluster is simulated on this machine: a head, where driver and learner are, and two sampler nodes with a fake GPU
each. Samplers are killed and frozen, a node goes and another comes, the learner is killed, the driver is killed and the
run resumed. Kinds and pauses are seeded; what a fault hits at its moment is up to the machine, and must not matter.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from raydense.fleets.ray_cluster import starting_here
from raydense.records.metrics import read_rows

TRAIN = (sys.executable, "-m", "raydense.cli", "train", "--log-format", "plain")
FAULTS = ("kill sampler", "freeze sampler", "remove node", "kill learner", "kill driver")
RESULT = ("lora/pytorch_lora_weights.safetensors", "metrics.jsonl")  # whose bytes must not change
MAX_STARTS = 200  # of drivers for one run
DEATH_SHOWS_S = 10.0  # a unit's time and Ray's notice, with a wide margin
SYSTEM = {  # a lost node is noticed in seconds; small groups lie in the object store, as large ones do
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
    "max_direct_call_object_size": 1024,
}
ON_CPUS = ("sampler.device=cpu", "learner.device=cpu", "learner.num_gpus=0")  # of both runs: the GPUs are not real
ON_THE_CLUSTER = "samplers={max: 2, num_cpus: 0, num_gpus: 1, hang_s: 60, hang_floor_s: 5, patience_s: 300}"


@dataclass
class Disturbance:
    """What one disturbed run shows."""

    schedule: str
    faults: Counter[str] = field(default_factory=Counter)  # injected, by kind
    starts: int = 0  # of drivers
    ledger: dict[str, int] = field(default_factory=dict)  # the fleet's and the units' totals, over all processes
    same_bytes: bool = False
    balanced: bool = False
    wall_s: float = 0.0

    @property
    def ok(self) -> bool:
        return self.same_bytes and self.balanced


class Chaos:
    """Args: config: a YAML file. root: a new directory. seed: of kinds and pauses. pause_s: mean between two faults."""

    def __init__(self, config: Path, root: Path, seed: int, pause_s: float, say: Callable[[str], None]) -> None:
        self._config, self._root, self._say = config, root, say
        self._draws, self._pause_s = random.Random(seed), pause_s
        self._queue: list[str] = []

    def calm(self, schedule: str) -> Path:
        """The undisturbed run, in one process without Ray; made once."""
        out = self._root / f"calm-{schedule}"
        if not (out / "summary.json").exists():
            self._say(f"{schedule}: the undisturbed run")
            subprocess.run([*self._fresh(out, schedule), "--local"], check=True, capture_output=True)
        return out

    def disturb(self, cluster: Cluster, nodes: list[Any], schedule: str, name: str, budget: int) -> Disturbance:
        """One run with at most `budget` faults, started again until it ends by itself."""
        calm, out, outcome = self.calm(schedule), self._root / name, Disturbance(schedule)
        environment = {**os.environ, "RAY_ADDRESS": cluster.address}
        fresh = [*self._fresh(out, schedule), "--set", ON_THE_CLUSTER]
        started = time.monotonic()
        with (self._root / f"{name}.log").open("ab") as log:
            while not (out / "summary.json").exists():
                outcome.starts += 1
                if outcome.starts > MAX_STARTS:
                    raise RuntimeError(f"{name} did not end after {MAX_STARTS} starts; see {log.name}")
                again = (out / "config.yaml").exists()
                command = [*TRAIN, "--resume", str(out)] if again else fresh
                driver = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
                try:
                    self._harass(driver, cluster, nodes, out, outcome, budget)
                finally:
                    driver.kill()
                    driver.wait()
        outcome.wall_s = time.monotonic() - started
        outcome.same_bytes = all((out / f).read_bytes() == (calm / f).read_bytes() for f in RESULT)
        outcome.ledger, outcome.balanced = read_ledger(out)
        return outcome

    def _fresh(self, out: Path, schedule: str) -> list[str]:
        settings = (f"stage.schedule={schedule}", *ON_CPUS)
        return [*TRAIN, str(self._config), "--out", str(out), *(a for s in settings for a in ("--set", s))]

    def _harass(
        self, driver: Any, cluster: Cluster, nodes: list[Any], out: Path, outcome: Disturbance, budget: int
    ) -> None:
        """Injects faults until the driver ends."""
        while driver.poll() is None:
            if outcome.faults.total() >= budget:
                driver.wait()
                return
            self._wait(driver, self._draws.expovariate(1 / self._pause_s), out)
            if driver.poll() is None:
                kind = self._next_kind()
                if self._inject(kind, driver, cluster, nodes, out):
                    outcome.faults[kind] += 1
                    self._say(f"{outcome.schedule}: {outcome.faults.total()} of {budget}: {kind}")
                else:
                    self._queue.append(kind)

    def _wait(self, driver: Any, seconds: float, out: Path) -> None:
        """A pause, of which only the time with some progress since the driver's start counts."""
        before = _progress(out)
        while driver.poll() is None and _progress(out) == before:
            time.sleep(0.2)
        deadline = time.monotonic() + seconds
        while driver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)

    def _next_kind(self) -> str:
        """Every kind as often as the others, in a seeded order."""
        if not self._queue:
            self._queue = self._draws.sample(FAULTS, len(FAULTS))
        return self._queue.pop()

    def _inject(self, kind: str, driver: Any, cluster: Cluster, nodes: list[Any], out: Path) -> bool:
        if kind == "kill driver":
            driver.kill()
            return True
        before, _ = read_ledger(out)
        if kind == "remove node":
            node = nodes.pop(self._draws.randrange(len(nodes)))
            cluster.remove_node(node, allow_graceful=False)
            nodes.append(add_sampler_node(cluster))
            return self._noticed(kind, driver, out, before)
        role = "ray::Sampler" if "sampler" in kind else "ray::Learner"
        victims = _actors(role, born_after=psutil.Process(driver.pid).create_time())
        if not victims:
            return False
        self._draws.choice(victims).send_signal(signal.SIGSTOP if kind == "freeze sampler" else signal.SIGKILL)
        return kind == "kill learner" or self._noticed(kind, driver, out, before)

    def _noticed(self, kind: str, driver: Any, out: Path, before: dict[str, int]) -> bool:
        """Waits until the fleet has found out about a sampler: another fault would hide it.

        A frozen one is found out at its next unit. A killed one, or one that went with its node, may have been idle, or
        not yet built, and be back before it gets a unit: then nothing was disturbed, and it does not count as a fault.
        """
        effect, patience_s = ("hangs", math.inf) if kind == "freeze sampler" else ("deaths", DEATH_SHOWS_S)
        deadline = time.monotonic() + patience_s
        while not (noticed := read_ledger(out)[0].get(effect, 0) > before.get(effect, 0)):
            if driver.poll() is not None or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        return noticed


@contextmanager
def chaos_cluster() -> Iterator[tuple[Cluster, list[Any]]]:
    """A head and two sampler nodes on this machine. Raises: ConfigError if Ray's temporary directory cannot be used."""
    head = {"num_cpus": 4, "include_dashboard": False, "_system_config": SYSTEM}
    with starting_here():
        cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield cluster, [add_sampler_node(cluster) for _ in range(2)]
    finally:
        cluster.shutdown()


def add_sampler_node(cluster: Cluster) -> Any:
    return cluster.add_node(num_cpus=0, num_gpus=1, wait=False)


def read_ledger(run: Path) -> tuple[dict[str, int], bool]:
    """Totals over all processes of a run, and whether every stage was fully delivered and consumed."""
    totals: Counter[str] = Counter()
    process: dict[str, int] = {}  # the counters of one process only grow, until the next one starts
    stages: dict[int, dict[str, Any]] = {}
    for row in read_rows(run / "telemetry.jsonl"):
        if row["kind"] == "start":
            totals.update(process)
            totals["restarted"] += 1
            process = {}
        if row["kind"] in ("fleet", "ledger"):
            process = {name[6:]: int(value) for name, value in row.items() if name.startswith("fleet/")}
        if row["kind"] == "ledger":
            stages[row["stage"]] = row
    totals.update(process)
    totals["restarted"] -= 1
    del totals["live_samplers"]
    balanced = all(row["issued"] == row["finished"] == row["consumed"] for row in stages.values())
    return dict(totals), balanced and bool(stages)


def _actors(role: str, born_after: float) -> list[psutil.Process]:
    """Processes of one kind of actor below this one, by age; not those that a killed driver left behind."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            named = any(role in part for part in process.cmdline())
            if named and process.create_time() > born_after and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return sorted(found, key=lambda process: (process.create_time(), process.pid))


def _progress(run: Path) -> int:
    """Bytes of telemetry: they grow with every unit, and as a process starts."""
    path = run / "telemetry.jsonl"
    return path.stat().st_size if path.exists() else 0


def as_json(outcomes: list[Disturbance]) -> str:
    return json.dumps([{**vars(outcome), "ok": outcome.ok} for outcome in outcomes], indent=1)
