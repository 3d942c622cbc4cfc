"""Ray's share of the wall time: `python tests/benchmarks/ray_share.py [--threads N]`.

The embedded preset's stages, synchronous, once in this process without Ray and once on Ray with one sampler actor and
the learner actor: the same units and steps with the same threads a role, so that in both one thing is done at a time.
Stage by stage in turns, the first of them and start-up left out of the share; in the end both must have learned the
same bytes. An observer does nothing but take the time and ask for the state that a checkpoint would hold.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_worker_niceness", "0")  # at Ray's 15, workers would lose to whatever else runs

import numpy as np

from raydense.config import Config, load_config
from raydense.core.interfaces import Fleet, Learner
from raydense.core.types import PolicyWeights, Position, StepMetrics
from raydense.fleets import local_runner, ray_runner
from raydense.pipelines.base_model import BaseModel
from raydense.planning.preflight import check_inputs
from raydense.planning.units import PromptSets
from raydense.training.stage_loop import run_stages

LOCAL, RAY = "local", "ray"


class TimedLearner:
    """`Learner` that says how long each step took where it was taken."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        from raydense.wiring.roles import build_learner

        self._inner: Any = build_learner(*arguments, **options)

    def train(self, num_steps: int) -> list[StepMetrics]:
        started = time.perf_counter()
        rows = self._inner.train(num_steps)
        return [replace(row, values={**row.values, "seconds": time.perf_counter() - started}) for row in rows]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class StageClock:
    """Observer: seconds of each phase, and what samplers and learner say that their work took."""

    def __init__(self, learner: Learner[Any]) -> None:
        self._learner, self._since = learner, 0.0
        self.seconds: dict[str, float] = {}

    def stage_started(self, stage: int, weights: PolicyWeights) -> None:
        self._since = time.perf_counter()

    def unit_collected(self, *_: Any) -> None: ...

    def stage_collected(self, stage: int, reports: Sequence[Any], *_: Any) -> None:
        self._lap("sampling")
        self.seconds["sampler"] = sum(sum(report.seconds.values()) for report in reports)
        self.seconds["learner"] = 0.0

    def steps_taken(self, position: Position, metrics: Sequence[StepMetrics], *_: Any) -> None:
        self.seconds["learner"] += sum(row.values["seconds"] for row in metrics)
        if position.steps == 1:
            self.seconds["first_step"] = self.seconds["learner"]

    def stage_finished(self, *_: Any) -> None:
        self._learner.state_dict()
        self._lap("training")

    def _lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase], self._since = now - self._since, now


class Runner:
    """One way to run the stages, one at a time, each from where the last ended."""

    def __init__(self, config: Config, prompts: PromptSets, fleet: Fleet[Any], learner: Learner[Any]) -> None:
        self._config, self._prompts, self._fleet, self.learner = config, prompts, fleet, learner

    def stage(self, number: int) -> Mapping[str, float]:
        """Seconds of the stage by phase, `wall` among them."""
        until = self._config.stage.model_copy(update={"count": number + 1})
        config = self._config.model_copy(update={"stage": until})
        clock = StageClock(self.learner)
        run_stages(config, self._prompts, self._fleet, self.learner, clock, Position(number))
        return {**clock.seconds, "wall": clock.seconds["sampling"] + clock.seconds["training"]}


def measure(config: Config, stages: int) -> dict[str, Any]:
    """Runs `stages` stages both ways in turns, and one before that does not count."""
    inputs = check_inputs(config)
    prompts, pipeline, start_up = inputs.prompts, inputs.pipeline, {}
    local_runner.build_learner = ray_runner.build_learner = TimedLearner  # type: ignore
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        fleet, make_learner = local_runner.build_local(config, pipeline, BaseModel(), Path(folder) / LOCAL)
        runners = {LOCAL: Runner(config, prompts, fleet, make_learner())}
        start_up[LOCAL] = time.perf_counter() - started
        started = time.perf_counter()
        with ray_runner.build_on_ray(config, pipeline, BaseModel(), Path(folder) / RAY) as (fleet, make_learner):
            runners[RAY] = Runner(config, prompts, fleet, make_learner())
            start_up[RAY] = time.perf_counter() - started
            found: dict[str, list[Mapping[str, float]]] = {LOCAL: [], RAY: []}
            for number in range(stages + 1):
                for way in (LOCAL, RAY) if number % 2 else (RAY, LOCAL):
                    found[way].append(runners[way].stage(number))
                walls = ", ".join(f"{way} {found[way][-1]['wall']:.2f} s" for way in found)
                print(f"stage {number}: {walls}", flush=True)
            checksums = {way: runner.learner.weights().checksum for way, runner in runners.items()}
    assert checksums[LOCAL] == checksums[RAY], f"the two did different work: {checksums}"
    return summary(config, {way: rows[1:] for way, rows in found.items()}, start_up)


def summary(
    config: Config, found: Mapping[str, Sequence[Mapping[str, float]]], start_up: Mapping[str, float]
) -> dict[str, Any]:
    """The share, and what Ray adds to a unit and to a step."""
    seconds = {way: {name: np.array([row[name] for row in rows]) for name in rows[0]} for way, rows in found.items()}
    for by in seconds.values():
        by["collecting"], by["directing"] = by["sampling"] - by["sampler"], by["training"] - by["learner"]
    added = {name: seconds[RAY][name] - seconds[LOCAL][name] for name in seconds[LOCAL]}
    units, steps = -(-config.stage.groups // config.sampler.prompts_at_once), config.stage.steps
    return {
        "share": _spread(added["wall"] / seconds[LOCAL]["wall"]),
        "share_outside_the_roles_own_work": _spread(
            (added["collecting"] + added["directing"]) / seconds[LOCAL]["wall"]
        ),
        "added_ms": {
            "a_unit_in_the_sampler": _spread(1000 * added["sampler"] / units),
            "a_unit_around_it": _spread(1000 * added["collecting"] / units),
            "a_step_in_the_learner": _spread(1000 * added["learner"] / steps),
            "a_step_around_it": _spread(1000 * added["directing"] / steps),
            "a_stages_first_step_in_the_learner": _spread(1000 * added["first_step"]),
        },
        "stage_s": {way: {n: round(float(np.median(v)), 3) for n, v in by.items()} for way, by in seconds.items()},
        "start_up_s": {way: round(value, 1) for way, value in start_up.items()},
        "stages": len(found[LOCAL]),
        "units_a_stage": units,
        "steps_a_stage": steps,
        "threads": config.sampler.threads,
    }


def _spread(values: Any) -> dict[str, float]:
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": round(float(median), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1, help="of each role, in both")
    parser.add_argument("--set", nargs="*", default=[], help="overrides of the preset, for both")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(arguments)
    shape = "{count: 1, groups: 40, steps: 4, schedule: synchronous}"
    threads = [f"sampler.threads={chosen.threads}", f"learner.threads={chosen.threads}"]
    config = load_config(
        None, "tiny", [f"stage={shape}", "train.batch_groups=24", "samplers.count=1", *threads, *chosen.set]
    )
    result = measure(config, chosen.stages)
    print(json.dumps(result, indent=1))
    if chosen.json:
        chosen.json.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
