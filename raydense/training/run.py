"""One whole run: judge the base model, run the stages, judge the result, write the summary; or continue one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raydense.config import Config, ConfigError, resumed_config
from raydense.core.interfaces import Fleet, Learner, LearnerDied, NonFiniteStepError
from raydense.core.types import PolicyWeights
from raydense.files.durable import write_text
from raydense.pipelines.base_model import BaseModel
from raydense.pipelines.pipeline_files import PipelineFiles
from raydense.planning.compute import computed_rows
from raydense.planning.dry_run import count_judged
from raydense.planning.micro_batch import local_gpu, settled
from raydense.planning.pinning import Pinned, continue_inputs, pin_inputs
from raydense.planning.preflight import Found, check_inputs
from raydense.records.checkpoint_files import Checkpoint
from raydense.records.checkpoints import CheckpointStore
from raydense.records.metrics import MetricSink, read_rows
from raydense.records.mirror import Mirror
from raydense.records.progress import ProgressDisplay
from raydense.records.run_dir import RunDirectory
from raydense.records.scores import Judgement
from raydense.records.sinks import open_sinks
from raydense.training.judging import judge, score_table
from raydense.training.normalising import StageScales
from raydense.training.recorder import Recorder
from raydense.training.stage_loop import StageState, run_stages
from raydense.training.stopping import StopFlag
from raydense.training.summary import losses, summarise
from raydense.training.watch import StoppedByWatch
from raydense.wiring.policies import family_for

MAX_LEARNER_DEATHS = 3
LearnerFactory = Callable[[], Learner[Any]]


def train(
    config: Config,
    out: Path,
    mirror: Mirror | None = None,
    *,
    local: bool,
    display: ProgressDisplay,
    origin: Mapping[str, str] = {},  # never changed
) -> Mapping[str, Any]:
    """Runs `config` into the new directory `out`; returns the summary that it wrote there.

    Args: origin: the `preset` or the `config` file that it is, for Ray's list of jobs.
    Raises: ConfigError before any work if something does not fit; StopRequested on SIGINT or SIGTERM.
    """
    found = check_inputs(config)
    about = _about(config, out, mirror, origin)
    with _settled(found.config, found.pipeline, local, about) as config:
        pinned = pin_inputs(config, found.prompts)
        run_dir = RunDirectory.create(out, config, mirror)
        try:
            return _Run(config, pinned, found, run_dir, local, display, about).execute()
        except ConfigError:  # nothing was started, so nothing is lost
            run_dir.discard()
            raise


def resume(
    root: Path,
    overrides: list[str],
    mirror: Mirror | None = None,
    *,
    local: bool,
    display: ProgressDisplay,
    accept_changes: bool = False,
) -> Mapping[str, Any]:
    """Continues the run in `root` from its latest sound checkpoint; on the CPU the result has the same bytes.

    Args: accept_changes: whether to go on where its inputs are not what it was made from.
    Raises: ConfigError if `root` holds no run, if an override changes what a run may not change, or if inputs have
        changed; the run directory is then as it was.
    """
    run_dir = RunDirectory(root, mirror)
    if mirror:
        mirror.pull()
    config = resumed_config(run_dir.read_config("--resume"), overrides)
    run_dir.claim()
    before = run_dir.config_file.read_text("utf-8")
    pinned = continue_inputs(config, run_dir, accept_changes=accept_changes)
    found = check_inputs(pinned.config)
    try:
        about = _about(config, root, mirror)
        return _Run(config, pinned, found, run_dir, local, display, about).execute()
    except ConfigError:  # such as of a buffer that the first unit showed to be too small
        write_text(run_dir.config_file, before)
        raise


class _Run:
    """One process's part of a run: from the latest checkpoint, if there is one, to the summary."""

    def __init__(
        self,
        config: Config,
        pinned: Pinned,
        found: Found,
        run_dir: RunDirectory,
        local: bool,
        display: ProgressDisplay,
        about: Mapping[str, str],
    ) -> None:
        self._config, self._pinned, self._dir, self._local = config, pinned, run_dir, local
        self._about = about
        self._sets, self._pipeline = found.prompts, found.pipeline
        self._notes = (*pinned.notes, *found.notes)
        self._store = CheckpointStore.of_run(run_dir, config)
        self._scales = StageScales(config.reward.scorer, run_dir.root)
        self._display, self._stop = display, StopFlag()
        self._started = time.perf_counter()

    def execute(self) -> Mapping[str, Any]:
        with self._display as display:
            display.say(f"run directory: {self._dir.shown}")
            for note in self._notes:
                display.say(note)
            base, located = self._pinned.base_model(), self._pinned.config
            components = _components(located, self._pipeline, base, self._dir, self._local, self._about)
            with components as (fleet, make_learner):
                for deaths in range(MAX_LEARNER_DEATHS + 1):
                    try:
                        learner = make_learner()
                        self._record_inputs(base)
                        return self._attempt(fleet, learner)
                    except LearnerDied as error:
                        display.say(f"the learner died ({error}); continuing from the last checkpoint")
                        if deaths == MAX_LEARNER_DEATHS:
                            raise
        raise AssertionError("unreachable")

    def _record_inputs(self, base: BaseModel) -> None:
        """What this process goes on with, as soon as nothing can refuse it any more."""
        recorded = self._pinned.recorded(base)
        self._dir.forget_failure()
        self._dir.write_config(self._config)
        self._dir.write_inputs(recorded.pins, self._sets.named(), self._pinned.accepted)
        self._dir.write_scheduler(self._pipeline["scheduler"], self._config.steps)
        self._pinned = recorded

    def _attempt(self, fleet: Fleet[Any], learner: Learner[Any]) -> Mapping[str, Any]:
        checkpoint = self._store.latest(self._display.say)
        recorder = Recorder(
            self._config,
            self._sets,
            self._dir,
            fleet,
            learner,
            self._display,
            self._store,
            self._stop,
            self._sinks(_next_step(checkpoint)),
            metrics_bytes=checkpoint.metrics_bytes if checkpoint else 0,
            scales=self._scales,
            denoiser=self._pipeline.layout.denoiser,
        )
        runner = "local" if self._local else "ray"
        recorder.position = checkpoint.position if checkpoint else recorder.position
        recorder.process_started(runner, resumed=checkpoint is not None)
        recorder.seconds["starting"] = time.perf_counter() - self._started
        try:
            before, after, last_step = self._stages(fleet, learner, recorder, checkpoint)
        except (NonFiniteStepError, StoppedByWatch) as error:
            self._dir.write_failure(str(error))
            self._dir.publish()
            raise
        finally:
            recorder.close()
        wall_s = time.perf_counter() - self._started
        a_latent, judged = family_for(self._config, self._pipeline).rows, count_judged(self._config, self._sets)
        rows = computed_rows(self._config, a_latent, read_rows(self._dir.metrics), judged)
        summary = summarise(self._config, before, after, recorder.seconds, wall_s, runner, rows, last_step)
        self._dir.write_scores(score_table(self._config, self._sets, before, after, last_step))
        self._dir.write_summary(summary)
        self._dir.publish()
        for line in losses(summary):
            self._display.say(line)
        return summary

    def _sinks(self, first_step: int) -> list[MetricSink]:
        sinks = list(open_sinks(self._config, self._dir, first_step, self._display.say))
        if not self._local:
            from raydense.fleets.ray_metrics import RayMetricsSink

            sinks.append(RayMetricsSink(self._config.name))
        return sinks

    def _stages(
        self, fleet: Fleet[Any], learner: Learner[Any], recorder: Recorder, checkpoint: Checkpoint | None
    ) -> tuple[Judgement, Judgement, Judgement | None]:
        """Of the base model, of the result, and where that is an average, of the last step's weights."""
        base = learner.weights()
        fleet.broadcast(base)
        self._display.update("judging the base model", 0, 1)
        recorder.save_images("base", "base model", base)
        before = self._dir.read_base_judgement() if checkpoint else None
        if before is None:
            before = self._judge(fleet, recorder, base)
            recorder.judgements.of_model(before, recorder.position, base.steps)
            recorder.base_judged()
            self._dir.write_base_judgement(before)
        if checkpoint is None:
            recorder.checkpoint(recorder.position)
        else:
            self._display.say(f"continuing from {checkpoint.position.name}")
            learner.load_state_dict(checkpoint.learner)
        with self._stop.listening(self._display.say):
            known = StageState(checkpoint.behaviour, checkpoint.began) if checkpoint else StageState()
            final = run_stages(
                self._config, self._sets, fleet, learner, recorder, recorder.position, known, self._scales
            )
        self._display.update("judging the tuned model", 0, 1)
        after = self._judge(fleet, recorder, final)
        recorder.judgements.of_model(after, recorder.position, final.steps)
        if self._config.train.ema is None:
            return before, after, None
        self._display.update("judging the weights of the last step", 0, 1)
        last_step = self._judge(fleet, recorder, weights := learner.weights())
        recorder.judgements.of_last_step(last_step, recorder.position, weights.steps)
        return before, after, last_step

    def _judge(self, fleet: Fleet[Any], recorder: Recorder, weights: PolicyWeights) -> Judgement:
        fleet.broadcast(weights)
        with recorder.phase("judging"):
            judgement = judge(self._config, self._sets, fleet, weights.version)
        self._scales.calibrate(judgement)  # with the base model's, which comes first
        return self._scales.restate(judgement)


def _next_step(checkpoint: Checkpoint | None) -> int:
    """The first gradient step that is still to come; 0 before a run's first checkpoint."""
    return checkpoint.learner["step"] + 1 if checkpoint else 0


def _about(config: Config, root: Path, mirror: Mirror | None, origin: Mapping[str, str] = {}) -> Mapping[str, str]:
    """The run, for Ray's list of jobs."""
    return {"job_name": config.name, **origin, "directory": mirror.uri if mirror else str(root.absolute())}


@contextmanager
def _settled(config: Config, pipeline: PipelineFiles, local: bool, about: Mapping[str, str]) -> Iterator[Config]:
    """The configuration with numbers in the places of `auto`, which are then the run's own."""
    if local or config.learner.micro_batch != "auto":
        yield settled(config, pipeline, local_gpu)
    else:
        from raydense.fleets.ray_runner import settled_on_ray

        with settled_on_ray(config, pipeline, about) as found:
            yield found


@contextmanager
def _components(
    config: Config,
    pipeline: PipelineFiles,
    base: BaseModel,
    run_dir: RunDirectory,
    local: bool,
    about: Mapping[str, str],
) -> Iterator[tuple[Fleet[Any], LearnerFactory]]:
    if local:
        from raydense.fleets.local_runner import build_local

        yield build_local(config, pipeline, base, run_dir.segments)
    else:
        from raydense.fleets.ray_runner import build_on_ray

        with build_on_ray(config, pipeline, base, run_dir.segments, about) as components:
            yield components
