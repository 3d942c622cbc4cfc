"""One whole run: judge the base model, run the stages, judge the result, write the summary."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from raydense.config import Config
from raydense.core.interfaces import Fleet, Learner
from raydense.runtime.judging import Judgement, compare, judge, score_table
from raydense.runtime.plan import PromptSets, read_prompt_sets
from raydense.runtime.progress import ProgressDisplay
from raydense.runtime.recorder import Recorder
from raydense.runtime.run_dir import RunDirectory
from raydense.runtime.stage_loop import run_stages

PACKAGES = ("raydense", "ray", "torch", "diffusers", "peft", "transformers", "numpy")


class Interrupted(RuntimeError):
    """Ctrl-C; the message says what the run directory holds."""


def train(config: Config, out: Path, *, local: bool, console: Console) -> Mapping[str, Any]:
    """Runs `config` into the new directory `out`; returns the summary that it wrote there.

    Raises: ConfigError or ValueError before any work if something does not fit; Interrupted on Ctrl-C.
    """
    started = time.perf_counter()
    sets = read_prompt_sets(config)
    run_dir = RunDirectory(out, config)
    with ProgressDisplay(console) as display:
        display.say(f"run directory: {out}")
        finished = 0
        try:
            with _components(config, local) as (fleet, learner):
                recorder = Recorder(config, sets, run_dir, fleet, learner, display)
                recorder.seconds["starting"] = time.perf_counter() - started
                try:
                    before, after = _run(config, sets, fleet, learner, recorder, display)
                finally:
                    finished = recorder.finished_stages
                    recorder.close()
        except KeyboardInterrupt:
            raise Interrupted(_what_is_left(out, finished, config)) from None
        summary = _summarise(config, before, after, recorder.seconds, time.perf_counter() - started, local)
        run_dir.write_scores(score_table(config, sets, before, after))
        run_dir.write_summary(summary)
    return summary


def _run(
    config: Config,
    sets: PromptSets,
    fleet: Fleet[Any],
    learner: Learner[Any],
    recorder: Recorder,
    display: ProgressDisplay,
) -> tuple[Judgement, Judgement]:
    base = learner.weights()
    fleet.broadcast(base)
    display.update("judging the base model", 0, 1)
    recorder.save_images("base", "base model", base)
    before = _judge(config, sets, fleet, recorder, base.version)
    final = run_stages(config, sets, fleet, learner, recorder)
    display.update("judging the tuned model", 0, 1)
    return before, _judge(config, sets, fleet, recorder, final.version)


def _judge(config: Config, sets: PromptSets, fleet: Fleet[Any], recorder: Recorder, version: int) -> Judgement:
    with recorder.phase("judging"):
        judgement = judge(config, sets, fleet, version)
    means = {name: {s: float(v.mean()) for s, v in by.items()} for name, by in judgement.scores.items()}
    recorder.record_judgement(means, version)
    return judgement


@contextmanager
def _components(config: Config, local: bool) -> Iterator[tuple[Fleet[Any], Learner[Any]]]:
    if local:
        from raydense.runtime.local_runner import build_local

        yield build_local(config)
    else:
        from raydense.runtime.ray_runner import build_on_ray

        with build_on_ray(config) as components:
            yield components


def _summarise(
    config: Config,
    before: Judgement,
    after: Judgement,
    seconds: Mapping[str, float],
    wall_s: float,
    local: bool,
) -> dict[str, Any]:
    scores = compare(before, after)
    return {
        "name": config.name,
        "seed": config.seed,
        "runner": "local" if local else "ray",
        "scorer": config.reward.scorer.name,
        "reward": scores.pop(config.reward.scorer.name),
        "monitors": scores,
        "wall_s": round(wall_s, 2),
        "phases_s": {name: round(value, 2) for name, value in seconds.items()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }


def _what_is_left(out: Path, finished: int, config: Config) -> str:
    if not finished:
        return f"interrupted before the first stage ended; {out} holds the base model's pictures and the metrics so far"
    return (
        f"interrupted; {out} holds the LoRA, checkpoint and pictures of stage {finished} of {config.stage.count}, "
        "and all metrics so far"
    )
