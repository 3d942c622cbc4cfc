"""`raydense train --replay-from RUN`: learns from the groups that another run left on disk; nothing is sampled.

One process: a learner, and segments mapped from the disk. Nothing is judged or drawn either, since that takes samplers;
`raydense train --resume` does not apply, because there is nothing dear to lose.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from raydense.config import Config, ConfigError, changed_config
from raydense.core.interfaces import Learner
from raydense.core.types import (
    RESTORED,
    PolicyWeights,
    Position,
    Rendered,
    RenderUnit,
    TrajectoryGroup,
    UnitReport,
    WorkUnit,
)
from raydense.fleets.collecting import SerialCollection
from raydense.pipelines.pipeline_files import PipelineFiles
from raydense.planning.compute import computed_rows
from raydense.planning.micro_batch import local_gpu, settled
from raydense.planning.pinning import continue_inputs, pin_preferences
from raydense.planning.placement import check_one_worker
from raydense.planning.preflight import as_found, check_inputs
from raydense.planning.units import PromptSets, stage_units
from raydense.records.checkpoints import CheckpointStore
from raydense.records.metrics import read_rows
from raydense.records.mirror import Mirror
from raydense.records.progress import ProgressDisplay
from raydense.records.run_dir import RunDirectory
from raydense.records.segments import read_segment, segment_path
from raydense.records.sinks import open_sinks
from raydense.sections.run import StepsConfig
from raydense.training.normalising import StageScales
from raydense.training.preferences import PreferenceLearner, Preferences, read_preferences
from raydense.training.recorder import Recorder
from raydense.training.stage_loop import run_stages
from raydense.training.stopping import StopFlag
from raydense.training.summary import summarise
from raydense.wiring.devices import resolve_device
from raydense.wiring.policies import family_for
from raydense.wiring.roles import build_learner

MAY_CHANGE = (
    "name",
    "learner",
    "train",
    "replay",
    "checkpoint",
    "telemetry",
    "stage.count",
    "stage.steps",
    "steps.gamma",
    "steps.balance",
    "steps.draws",
    "steps.exclude_last",
    "steps.window",
)


class OfflineFleet:
    """`Fleet` that only reads: each unit's groups as the run in `root` sampled them, whatever weights that was with."""

    live = 0
    faults: Mapping[str, int] = MappingProxyType({})

    def __init__(self, root: Path) -> None:
        self._root = root

    def broadcast(self, weights: PolicyWeights) -> None:
        """Nobody samples with them."""

    def render(self, units: Iterable[RenderUnit]) -> list[Rendered]:
        raise NotImplementedError("an offline run draws nothing")

    def collect(self, units: Iterable[WorkUnit]) -> SerialCollection[TrajectoryGroup]:
        return SerialCollection(map(self._read, units))

    def is_lost(self, handles: Sequence[TrajectoryGroup]) -> bool:
        return False  # they are in this process

    def _read(self, unit: WorkUnit) -> tuple[UnitReport, Sequence[TrajectoryGroup]]:
        report, groups = read_segment(segment_path(self._root, unit.stage, unit.index))
        return replace(report, unit=unit, sampler=RESTORED), groups


def train_offline(
    source: Path,
    overrides: list[str],
    out: Path,
    mirror: Mirror | None = None,
    *,
    display: ProgressDisplay,
    preferences: Path | None = None,
    accept_changes: bool = False,
) -> Mapping[str, Any]:
    """Learns in the new directory `out` from the segments of the run in `source`; returns the summary.

    Args:
        preferences: a file of orders to learn in the place of the scores.
        accept_changes: whether to go on where inputs are not what `source` was made from.
    Raises: ConfigError if `source` lacks a segment, an override changes what was sampled, or inputs have changed.
    """
    started = time.perf_counter()
    config = offline_config(source, overrides)
    check_one_worker(config, "--replay-from")
    resolve_device(config.learner.device, "learner.device")
    pinned = continue_inputs(
        config,
        RunDirectory(source),
        accept_changes=accept_changes,
        leave_out=("prompts.",),  # it has the groups' own
    )
    found = check_inputs(pinned.config)
    config, sets = settled(as_found(config, found.pipeline), found.pipeline, local_gpu), found.prompts
    segments = RunDirectory(source).segments
    _check_segments(config, sets.train, segments)
    _check_states(config, RunDirectory(source).read_config().steps, segments)
    given = read_preferences(preferences, config) if preferences else None
    learner = _learner(pinned.config.model_copy(update={"learner": config.learner}), found.pipeline, given)
    run_dir = RunDirectory.create(out, config, mirror)
    run_dir.write_inputs({**pinned.pins, **pin_preferences(preferences)}, sets.named(), pinned.accepted)
    run_dir.write_scheduler(found.pipeline["scheduler"], config.steps)
    with display:
        display.say(f"run directory: {run_dir.shown}; learning from {source}")
        for note in (*pinned.notes, *found.notes):
            display.say(note)
        if given:
            display.say(f"{len(given.orders)} groups are ordered by {preferences}; {given.ties} tied pairs left out")
        seconds = _learn(config, sets, found.pipeline, learner, run_dir, display, source, given)
    a_latent = family_for(config, found.pipeline).rows
    rows = replace(computed_rows(config, a_latent, read_rows(run_dir.metrics), judged=0), sampler=0)
    summary = summarise(config, None, None, seconds, time.perf_counter() - started, "offline", rows)
    run_dir.write_summary(summary)
    run_dir.publish()
    return summary


def _learn(
    config: Config,
    sets: PromptSets,
    files: PipelineFiles,
    learner: Learner[TrajectoryGroup],
    run_dir: RunDirectory,
    display: ProgressDisplay,
    source: Path,
    given: Preferences | None,
) -> Mapping[str, float]:
    """Every stage, from the stored groups of the run in `source`; returns the seconds of each phase."""
    fleet, stop = OfflineFleet(RunDirectory(source).segments), StopFlag()
    recorder = Recorder(
        config,
        sets,
        run_dir,
        fleet,
        learner,
        display,
        CheckpointStore.of_run(run_dir, config),
        stop,
        open_sinks(config, run_dir, 0, display.say),
        metrics_bytes=0,
        scales=StageScales(config.reward.scorer, source),
        pictures=False,
        reward=given.origin if given else None,
        denoiser=files.layout.denoiser,
    )
    recorder.process_started("offline", resumed=False)
    try:
        recorder.checkpoint(Position())
        with stop.listening(display.say):
            run_stages(config, sets, fleet, learner, recorder)
    finally:
        recorder.close()
    return recorder.seconds


def _learner(config: Config, files: PipelineFiles, given: Preferences | None) -> Learner[TrajectoryGroup]:
    """Of the stored groups as they are, or of the orders that people gave of them."""

    def same(groups: Sequence[TrajectoryGroup]) -> Sequence[TrajectoryGroup]:
        return groups

    if given is None:
        return build_learner(config, fetch=same, files=files)
    capacity = sum(map(len, given.orders.values()))
    return PreferenceLearner(build_learner(config, fetch=same, capacity=capacity, files=files), given)


def offline_config(source: Path, overrides: list[str]) -> Config:
    """The configuration of the run in `source` with overrides of how it learns, not of what it sampled."""
    config = RunDirectory(source).read_config("--replay-from")
    return changed_config(config, overrides, MAY_CHANGE, "a run from stored groups")


def _check_states(config: Config, sampled: StepsConfig, root: Path) -> None:
    """Raises: ConfigError if the loss would draw steps that the first group has no states of, or that had no noise."""
    if not config.train.draws_steps:
        return  # every group has its final states
    _, (group, *_) = read_segment(segment_path(root, 0, 0))
    noisy = range(*(sampled.window or (0, sampled.count)))
    held = [step for step in group.steps if step in noisy]
    if lacking := [step for step in config.steps.drawn if step not in held]:
        raise ConfigError(
            f"the loss would draw step {', '.join(map(str, lacking))}, but the stored groups hold the steps "
            f"{held[0]} to {held[-1]} alone; set steps.exclude_last or steps.window to stay within them"
        )


def _check_segments(config: Config, prompts: Sequence[str], root: Path) -> None:
    for stage in range(config.stage.count):
        for unit in stage_units(config, prompts, stage, weights_version=0):
            if not segment_path(root, stage, unit.index).exists():
                raise ConfigError(
                    f"{root} lacks unit {unit.index} of stage {stage}; sample with --set replay.segments=true "
                    "--set replay.keep_segments=true, or lower stage.count"
                )
