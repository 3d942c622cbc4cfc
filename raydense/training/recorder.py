"""The observer of a run: metrics, telemetry, pictures, checkpoints and the LoRA into the run directory."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from raydense.config import Config
from raydense.core.interfaces import FAULTS, Fleet, Learner
from raydense.core.types import RESTORED, PolicyWeights, Position, StepMetrics, UnitReport
from raydense.planning.units import PromptSets, grid_prompts
from raydense.records.checkpoint_files import Checkpoint
from raydense.records.checkpoints import CheckpointStore
from raydense.records.grids import save_grid
from raydense.records.metrics import MetricSink
from raydense.records.progress import ProgressDisplay
from raydense.records.run_dir import RunDirectory
from raydense.records.telemetry import Arrivals, Meter, RunLog
from raydense.report.step_draws import StepDraws
from raydense.training.judgement_record import JudgementRecord
from raydense.training.judging import draw_grid
from raydense.training.normalising import StageScales
from raydense.training.result import LoraWriter
from raydense.training.stage_display import StageDisplay, first_reward
from raydense.training.stage_loop import StageState
from raydense.training.stage_metrics import nothing_but_ties, stage_values
from raydense.training.stopping import StopFlag, StopRequested
from raydense.training.summary import versions
from raydense.training.watch import RewardWatch


class Recorder:
    """Implements `stage_loop.Observer`. `metrics.jsonl` holds only what is deterministic; times go to telemetry."""

    def __init__(
        self,
        config: Config,
        sets: PromptSets,
        run_dir: RunDirectory,
        fleet: Fleet[Any],
        learner: Learner[Any],
        display: ProgressDisplay,
        checkpoints: CheckpointStore,
        stop: StopFlag,
        sinks: Sequence[MetricSink],
        metrics_bytes: int,
        scales: StageScales,
        pictures: bool = True,
        reward: Mapping[str, str] | None = None,
        denoiser: str = "unet",
    ) -> None:
        """reward: what the run learns from, if not from its scorer. denoiser: the folder of what is trained."""
        self._config, self._sets, self._dir = config, sets, run_dir
        self._loras, self._learns_orders = LoraWriter(config, run_dir, reward, denoiser), reward is not None
        self._fleet, self._learner, self._display = fleet, learner, display
        self._checkpoints, self._stop = checkpoints, stop
        self._log = RunLog(run_dir, metrics_bytes, sinks, display.say)
        self._phase_started = time.perf_counter()
        self._base_grid: np.ndarray | None = None
        self._pictures, self._draws = pictures, StepDraws(config)
        self.judgements = JudgementRecord(config, sets, run_dir, self._log, scales, during=pictures)
        self._watch = RewardWatch(config.reward, scales, run_dir.root)
        self.seconds: dict[str, float] = defaultdict(float)
        self.position = Position()
        self._pulled_bytes = self._steps = 0  # of the stage so far, in this process
        self._account: dict[str, int] = {}  # of the last stage collected
        self._told: dict[str, float] = {}  # of the fleet
        self._sampling = False  # whether the run waits for units
        self._arrivals: dict[int, Arrivals] = {}  # by stage: overlapped, one is collected while another trains
        self._images_rate, self._steps_rate = Meter(), Meter()
        self._stages = StageDisplay(
            display, config.stage.count, first_reward(run_dir.metrics) if metrics_bytes else None
        )

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the block's wall time to the phase, and takes it out of the one around it."""
        started = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - started
            self._phase_started += elapsed
            self._end_phase(name, self.position, elapsed)

    def process_started(self, runner: str, resumed: bool) -> None:
        """A run may have several processes; each says with what versions it computes."""
        step = self._first_step(self.position.stages) + self.position.steps
        facts = {"runner": runner, "resumed": resumed, "versions": versions()}
        self._log.telemetry("start", self.position.stages, step, {}, time=round(time.time(), 3), **facts)

    def close(self) -> None:
        self._log.close()

    # -- stage_loop.Observer ------------------------------------------------------------------------------

    def stage_started(self, stage: int, weights: PolicyWeights) -> None:
        self._sampling = True
        self._pulled_bytes = self._steps = 0
        self._stages.started()
        self._phase_started = time.perf_counter()
        self._arrivals.setdefault(stage, Arrivals(self._phase_started))
        self._images_rate.restart()

    def unit_collected(self, report: UnitReport, done: int, total: int) -> None:
        rewards = [r for group in report.groups for r in group.rewards]
        stage = report.unit.stage
        self._log.telemetry(
            "unit",
            stage,
            self._first_step(stage),
            {},
            unit=report.unit.index,
            sampler=report.sampler,
            seconds=dict(report.seconds),
            images=len(rewards),
            weights_version=report.unit.weights_version,
        )
        if report.sampler != RESTORED:
            self._arrivals.setdefault(stage, Arrivals()).add(len(rewards))
            self._tell_rate("throughput/images_per_s", self._images_rate.add(len(rewards)), Position(stage))
        self._tell_fleet(stage)
        self._log.monitors_failed(report.failures, stage, self._first_step(stage))
        self._stages.collected(stage, rewards, done, total, shown=self._sampling)
        if self._sampling and self._stop.signal_number is not None:
            raise StopRequested(self._stop.signal_number)

    def stage_collected(
        self, stage: int, reports: Sequence[UnitReport], account: Mapping[str, int], again: bool
    ) -> None:
        step, elapsed = self._first_step(stage), time.perf_counter() - self._phase_started
        self._stages.sampled(stage)
        rate = self._arrivals.pop(stage).rate
        facts = {} if rate is None else {"throughput/images_per_s": rate}
        self._end_phase("sampling", Position(stage), elapsed, **facts)
        self._phase_started = time.perf_counter()
        self._steps_rate.restart()
        self._account, self._sampling = dict(account), False
        self._log.telemetry("ledger", stage, step, self._fleet_counts(), **account)
        if again:
            return  # the metrics hold this stage's row from before the cut
        groups = [group for report in reports for group in report.groups]
        values, ends = stage_values(stage, groups, self._config.stage.steps)
        sighting = self._watch.look(stage, reports)
        values |= sighting.values
        checksum = groups[0].weights_checksum
        self._log.metrics("stage", stage, step, values, intervals=ends, weights_checksum=checksum)
        self._checkpoints.note_reward(stage, values["reward/mean"])
        if values["reward/tied_groups"] == 1 and not self._learns_orders:
            self._display.say(f"{self._stages.title(stage)}: {nothing_but_ties(self._config.train.ties)}")
        self._watch.react(sighting, self._stages.title(stage), self._display.say, self._dir.shown)

    def steps_taken(self, position: Position, metrics: Sequence[StepMetrics], state: StageState) -> None:
        self.position = position
        self._steps += len(metrics)
        self._tell_rate("throughput/steps_per_s", self._steps_rate.add(len(metrics)), position)
        self._tell_fleet(position.stages)
        for row in metrics:
            self._pulled_bytes += row.pulled_bytes
            notes = {**self._draws.notes(row.step), **row.by_step, "network_rows": row.network_rows}
            self._log.metrics("step", position.stages, row.step, row.values, **notes)
        last, per_stage = metrics[-1], self._config.stage.steps
        if self.judgements.is_due(last.step):  # before the checkpoint, which then has its row
            with self.phase("evaluating"):
                self.judgements.judge_held_out(self._fleet, self._learner, position)
        self._stages.trained(position.stages, position.steps, per_stage, last.values.get("loss", math.nan))
        every, stop = self._config.checkpoint.every_steps, self._stop.signal_number
        if position.steps < per_stage and (stop is not None or (every and last.step % every == 0)):
            self.checkpoint(position, state)
        if position.steps < per_stage and stop is not None:
            raise StopRequested(stop)

    def stage_finished(
        self, stage: int, weights: PolicyWeights, account: Mapping[str, int], following: StageState
    ) -> None:
        self._account = dict(account)  # groups may have been lost while it trained
        self._stages.finished()
        self._log.telemetry("ledger", stage, self._first_step(stage + 1), self._fleet_counts(), **account)
        elapsed = time.perf_counter() - self._phase_started
        facts = {"throughput/steps_per_s": self._steps / elapsed, "replay/pulled_bytes": self._pulled_bytes}
        self._end_phase("training", Position(stage, self._config.stage.steps), elapsed, **facts)
        if self._pictures:
            self.save_images(Position(stage + 1).name, f"after stage {stage + 1}", weights)
        self.checkpoint(Position(stage + 1), following)
        if self._stop.signal_number is not None:
            raise StopRequested(self._stop.signal_number)

    # -- files --------------------------------------------------------------------------------------------

    def checkpoint(self, position: Position, state: StageState = StageState()) -> None:  # noqa: B008 (immutable)
        """Writes a checkpoint from which the rest of the run gives the same bytes."""
        with self.phase("saving"):
            learner = self._learner.state_dict()
            self._loras.save(learner["weights"], self._learner.averaged())
            self._checkpoints.save(
                Checkpoint(
                    learner,
                    position,
                    state.behaviour,
                    self._log.metrics_bytes,
                    began=state.began,
                    record=self._record(state),
                    config=self._config.to_yaml(),
                )
            )
            self._dir.publish()
        self.position = position

    def save_images(self, name: str, title: str, weights: PolicyWeights) -> None:
        """Draws the grid with the weights broadcast last; from the second on, beside the base model's."""
        with self.phase("rendering"):
            known = self._base_grid is None and self.position > Position()  # a run that continues drew it before
            images = draw_grid(self._config, self._sets, self._fleet, weights.version)
            prompts = grid_prompts(self._config, self._sets)
            sheet = save_grid(self._dir.images / f"{name}.png", images, prompts, [title])
            if self._base_grid is None:
                self._base_grid = images
            else:
                both = np.concatenate([self._base_grid, images], axis=1)
                sheet = save_grid(self._dir.images / "before-after.png", both, prompts, ["base model", title])
            if not known:
                self._log.image(weights.steps, "images", sheet)

    def _record(self, state: StageState) -> dict[str, Any]:
        """What else is true at a checkpoint: the last account, the fleet's faults, units under way, segments."""
        segments = sorted(p.relative_to(self._dir.segments).as_posix() for p in self._dir.segments.rglob("*.arrow"))
        named = state.began or state.behaviour  # at a boundary, the next stage is the one to come
        return {
            "ledger": {**self._account, **self._fleet.faults},
            "outstanding": {
                "units": list(state.outstanding),
                "weights_version": named.version if state.outstanding and named else None,
            },
            "segments": segments,
        }

    def base_judged(self) -> None:
        self._stages.base_judged(self.seconds["judging"])

    def _tell_rate(self, name: str, rate: float | None, position: Position) -> None:
        """Between a stage's rows, for who watches; None: not yet time to."""
        if rate is not None:
            step = self._first_step(position.stages) + position.steps
            self._log.telemetry("rate", position.stages, step, {name: rate})

    def _first_step(self, stage: int) -> int:
        return stage * self._config.stage.steps

    def _tell_fleet(self, stage: int) -> None:
        """Says so when a sampler came, went or failed."""
        if (counts := self._fleet_counts()) != self._told:
            self._told = counts
            self._log.telemetry("fleet", stage, self._first_step(stage), counts)

    def _fleet_counts(self) -> dict[str, float]:
        faults = self._fleet.faults
        return {"fleet/live_samplers": self._fleet.live, **{f"fleet/{name}": faults.get(name, 0) for name in FAULTS}}

    def _end_phase(self, name: str, position: Position, elapsed: float, **facts: float) -> None:
        """Adds wall time to a phase, and tells of it."""
        self.seconds[name] += elapsed
        step = self._first_step(position.stages) + position.steps
        self._log.telemetry("phase", position.stages, step, {f"phase/{name}_s": elapsed, **facts})
