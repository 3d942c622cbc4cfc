"""A replay buffer five times the size of the object store: it spills, stays readable, and its files go with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STORE_MB, GROUPS = 200, 128  # a group has 8.4 MB, that of SD1.5 at T = 50 and K = 5: 1.07 GB

SCRIPT = """
import gc, json, random, statistics, sys, time
from pathlib import Path
import numpy as np
import ray
from actors.dispatch import Deadlines
from actors.ray_fleet import RayFleet
from learner.ray_learner import fetch_groups
from raydense.core.replay import ReplayBuffer
from raydense.core.types import PolicyWeights, TrajectoryGroup, UnitReport, WorkUnit

store_mb, count, spill = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
ray.init(address="local", object_store_memory=store_mb * 2**20, object_spilling_directory=str(spill),
         num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")

class FakeSampler:
    def __init__(self, name):
        self.name = name
    def sample(self, unit, weights):
        groups = [TrajectoryGroup(0, i, "p", np.zeros((77, 768), np.float32),
                                  np.full((5, 51, 4, 64, 64), i, np.float16), np.zeros((5, 50), np.float32),
                                  np.zeros(5, np.float32), 0, "") for i in unit.group_indices]
        return UnitReport(unit, (), {}, self.name), groups

fleet = RayFleet(FakeSampler, maximum=1, minimum=1, num_cpus=0.5, num_gpus=0,
                 deadlines=Deadlines(60.0, 10.0, 60.0), patience_s=60.0, run_seed=0)
fleet.broadcast(PolicyWeights.of(0, {}))
started = time.perf_counter()
arrivals = {r.unit.index: h[0] for r, h in fleet.collect([WorkUnit(0, i, (i,), ("p",), 0) for i in range(count)])}
collected = time.perf_counter() - started
replay = ReplayBuffer(count)
replay.replace([arrivals[i] for i in range(count)])
del arrivals
spilled = sum(p.stat().st_size for p in spill.rglob("*") if p.is_file())
reads, wrong = [], 0
for i in random.Random(0).choices(range(count), k=64):
    started = time.perf_counter()
    group = fetch_groups([replay[i]])[0]
    reads.append(time.perf_counter() - started)
    wrong += int(group.index != i or float(group.latents[0, 0, 0, 0, 0]) != i)
    del group
fleet.shutdown()
del fleet  # and the weights with it: Ray may have spilled them into one file with groups
replay.replace([])
gc.collect()
deadline = time.monotonic() + 60
while any(p.is_file() for p in spill.rglob("*")) and time.monotonic() < deadline:
    time.sleep(0.2)
left = sum(p.stat().st_size for p in spill.rglob("*") if p.is_file())
print(json.dumps({"collected_s": collected, "spilled_mb": spilled / 1e6, "wrong": wrong, "left": left,
                  "read_ms": 1000 * statistics.median(reads)}))
ray.shutdown()
"""


def test_a_buffer_larger_than_the_store_spills_and_goes_on(tmp_path: Path) -> None:
    """no plain twin: takes a gigabyte of disk."""
    spill = tmp_path / "spill"
    spill.mkdir()
    command = [sys.executable, "-c", SCRIPT, str(STORE_MB), str(GROUPS), str(spill)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-2000:]
    figures = json.loads(ended.stdout.splitlines()[-1])
    print(figures)
    assert figures["wrong"] == 0
    assert figures["spilled_mb"] > GROUPS * 8.4 - 1.5 * STORE_MB
    assert figures["left"] == 0  # dropping the references frees the files
