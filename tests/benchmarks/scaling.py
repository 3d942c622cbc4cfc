"""How far the driver carries a fleet: `python tests/benchmarks/scaling.py [--samplers 1,4,16,64] [--json FILE]`.

The real stage loop, fleet and learner actor on a real Ray; only the compute is replaced, by sleep. Many samplers fit
on one machine, since their processes load no model. Start-up is left out; a stage's weights are of SD1.5's rank-4 size.

    python tests/benchmarks/scaling.py --simulated 8,64,512,1000

Larger fleets, by CPU time alone: the driver's own code over simulated samplers (`simulated.py`), beside what Ray takes
of the driver for a call with as many under way; what a worker of the learner fetches; what segments take.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_worker_niceness", "0")

import numpy as np
import psutil
import ray
from simulated import archived, direct, pulled

from actors.dispatch import IN_FLIGHT, Deadlines
from actors.ray_fleet import RayFleet
from learner.ray_learner import RayLearner
from raydense.config import Config, load_config
from raydense.core.types import PolicyWeights, UnitReport
from raydense.planning.units import PromptSets
from raydense.training.stage_loop import run_stages

LORA_VALUES = 797_184  # of SD1.5 at rank 4


def sleeping_sampler(unit_s: float) -> Callable[[str], Any]:
    """Local classes travel to the workers by value."""

    class Sleeper:
        def __init__(self, name: str) -> None:
            import threading

            self._name, self._device = name, threading.Lock()

        def sample(self, unit: Any, weights: Any) -> Any:
            from raydense.core.types import GroupMeta, TrajectoryGroup, UnitReport

            with self._device:
                time.sleep(unit_s)
            metas, groups = [], []
            for index, prompt in zip(unit.group_indices, unit.prompts, strict=True):
                stamp = (weights.version, weights.checksum)
                zeros = np.zeros(5, np.float32)
                given = {"prompt_embeds": zeros[None]}
                latents = np.zeros((5, 51, 4, 8, 8), np.float16)
                groups.append(TrajectoryGroup(unit.stage, index, prompt, given, latents, zeros[:, None], zeros, *stamp))
                metas.append(GroupMeta(unit.stage, index, prompt, (0.0,) * 5, {}, groups[-1].nbytes, *stamp))
            return UnitReport(unit, tuple(metas), {"denoise": unit_s}, self._name), groups

        def render(self, unit: Any, weights: Any) -> Any:
            raise NotImplementedError

    return Sleeper


def sleeping_learner(step_s: float) -> Callable[..., Any]:
    class Sleeper:
        def __init__(self, fetch: Any, gang: Any) -> None:
            self._step = 0

        def weights(self) -> PolicyWeights:
            return PolicyWeights.of(self._step, {"a": np.full(LORA_VALUES, self._step, np.float32)})

        def averaged(self) -> None: ...

        def begin_stage(self, stage: int, groups: Any) -> None: ...

        def train(self, num_steps: int) -> Any:
            from raydense.core.types import StepMetrics

            time.sleep(step_s * num_steps)
            self._step += num_steps
            return [StepMetrics(self._step, {})]

    return Sleeper


class Silent:
    """An observer that notes when the first unit was asked for."""

    started = 0.0

    def stage_started(self, stage: int, weights: PolicyWeights) -> None:
        self.started = self.started or time.perf_counter()

    def unit_collected(self, report: UnitReport, done: int, total: int) -> None: ...

    def stage_collected(self, *_: Any) -> None: ...

    def steps_taken(self, *_: Any) -> None: ...

    def stage_finished(self, *_: Any) -> None: ...


def simulate(
    *, samplers: int, unit_s: float, units: int, step_s: float, steps: int, stages: int, schedule: str
) -> Mapping[str, float]:
    """Wall seconds of the stages, the driver's CPU seconds, and those of the whole machine."""
    config: Config = load_config(
        overrides=[
            f"stage={{count: {stages}, groups: {units}, steps: {steps}, schedule: {schedule}}}",
            "sampler.unit_prompts=1",
            "train.batch_groups=1",
        ]
    )
    learner = RayLearner(sleeping_learner(step_s), num_cpus=0, num_gpus=0)
    fleet = RayFleet(
        sleeping_sampler(unit_s),
        maximum=samplers,
        minimum=samplers,
        num_cpus=0,
        num_gpus=0,
        deadlines=Deadlines(60.0, 10.0, 60.0),
        patience_s=300.0,
        run_seed=0,
    )
    try:
        fleet.wait_ready()
        learner.started()
        observer, used, busy = Silent(), _cpu_s(), _machine_cpu_s()
        run_stages(config, PromptSets(("a cat",), ()), fleet, learner, observer)
        wall_s = time.perf_counter() - observer.started
        return {"wall_s": wall_s, "driver_cpu_s": _cpu_s() - used, "machine_cpu_s": _machine_cpu_s() - busy}
    finally:
        fleet.shutdown()
        learner.shutdown()


def efficiency(samplers: int, unit_s: float, units_each: int) -> dict[str, float]:
    """Sampling alone: the ideal is each sampler at work all the time."""
    units, stages = samplers * units_each, 2
    found = simulate(
        samplers=samplers, unit_s=unit_s, units=units, step_s=0.0, steps=1, stages=stages, schedule="synchronous"
    )
    ideal = stages * units_each * unit_s
    return {
        "samplers": samplers,
        "units": stages * units,
        "ideal_s": ideal,
        "wall_s": found["wall_s"],
        "efficiency": ideal / found["wall_s"],
        "units_a_s": stages * units / found["wall_s"],
        "driver_cpu_ms_a_unit": 1000 * found["driver_cpu_s"] / (stages * units),
        "machine_cpu_ms_a_unit": 1000 * found["machine_cpu_s"] / (stages * units),
    }


def overlap_gain(stages: int, length_s: float) -> float:
    """Throughput of the overlapped schedule over the synchronous one, sampling and training being equally long."""
    shape: dict[str, Any] = {"samplers": 2, "unit_s": length_s / 4, "units": 8, "step_s": length_s / 4, "steps": 4}
    walls = [simulate(**shape, stages=stages, schedule=s)["wall_s"] for s in ("synchronous", "overlapped")]
    return walls[0] / walls[1]


def ray_cpu_ms(under_way: int, calls: int = 200) -> float:
    """The driver's, for one call, the wait for the first of `under_way`, and its answer."""

    @ray.remote(num_cpus=0, max_concurrency=2 * under_way)
    class Waiting:
        async def sleep(self) -> None:
            import asyncio

            await asyncio.sleep(600)

    @ray.remote(num_cpus=0)
    class Working:
        def answer(self) -> None: ...

    waiting, working = Waiting.remote(), Working.remote()  # type: ignore[attr-defined]
    others = [waiting.sleep.remote() for _ in range(under_way)]
    ray.get(working.answer.remote())
    used = time.process_time()
    for index in range(calls):
        call = working.answer.options(name=f"sample stage 0 unit {index}").remote()
        done, _ = ray.wait([*others, call], num_returns=1)
        ray.get(done)
    found = 1000 * (time.process_time() - used) / calls
    ray.kill(waiting)
    ray.kill(working)
    return found


def larger(fleets: Sequence[int], unit_s: float, units_each: int) -> dict[str, Any]:
    """The driver's share of a fleet's work, and where it would be all of it."""
    rows = []
    for samplers in fleets:
        row = direct(samplers, unit_s, units_each, Silent())
        row["ray_cpu_ms_a_unit"] = ray_cpu_ms(IN_FLIGHT * samplers)
        both = row["driver_cpu_ms_a_unit"] + row["ray_cpu_ms_a_unit"]
        row["units_a_s_at_most"] = 1000 / both
        row["shortest_unit_s"] = samplers * both / 1000
        rows.append(row)
        print(", ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
    fetched = [pulled(workers, groups=2000, steps=4000, batch_groups=32) for workers in (1, 8)]
    written = archived(groups=20)
    for found in (*fetched, written):
        print(", ".join(f"{name} {value:.4g}" for name, value in found.items()), flush=True)
    return {"simulated": rows, "pulled": fetched, "written": written}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samplers", default="1,4,16,64")
    parser.add_argument("--unit-s", type=float, default=1.0)
    parser.add_argument("--units-each", type=int, default=10)
    parser.add_argument("--overlap", action=argparse.BooleanOptionalAction, default=True, help="both schedules, too")
    parser.add_argument("--simulated", metavar="SAMPLERS", help="simulated samplers instead, such as 8,64,512,1000")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(arguments)
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    if chosen.simulated:
        found = larger([int(samplers) for samplers in chosen.simulated.split(",")], chosen.unit_s, chosen.units_each)
        if chosen.json:
            chosen.json.write_text(json.dumps(found, indent=1))
        return
    rows = []
    for samplers in map(int, chosen.samplers.split(",")):
        rows.append(efficiency(samplers, chosen.unit_s, chosen.units_each))
        print(", ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()), flush=True)
    gain = overlap_gain(stages=8, length_s=2.0) if chosen.overlap else None
    if gain is not None:
        print(f"overlapped over synchronous: {gain:.2f}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"the driver's peak memory: {peak:.0f} MiB")
    if chosen.json:
        chosen.json.write_text(json.dumps({"scaling": rows, "overlapped": gain}, indent=1))
    ray.shutdown()


def _machine_cpu_s() -> float:
    """Of all processes: a figure of this benchmark's only while nothing else runs."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0)


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
