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
from raydense.core.checkpoint import Checkpoint
from raydense.core.interfaces import Fleet, Learner
from raydense.core.lora import save_diffusers_lora
from raydense.core.metrics import MetricSink
from raydense.core.types import RESTORED, PolicyWeights, Position, StepMetrics, UnitReport
from raydense.runtime.build import lora_config, lora_origin
from raydense.runtime.checkpoints import CheckpointStore
from raydense.runtime.grids import save_grid
from raydense.runtime.judging import Judgement, draw_grid
from raydense.runtime.plan import PromptSets, grid_prompts
from raydense.runtime.progress import ProgressDisplay
from raydense.runtime.run_dir import RunDirectory
from raydense.runtime.stopping import StopFlag, StopRequested
from raydense.runtime.telemetry import RunLog


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
        metrics_bytes: int,
        sinks: Sequence[MetricSink] = (),
        pictures: bool = True,
    ) -> None:
        self._config, self._sets, self._dir = config, sets, run_dir
        self._fleet, self._learner, self._display = fleet, learner, display
        self._checkpoints, self._stop = checkpoints, stop
        self._log = RunLog(run_dir, metrics_bytes, sinks, display.say)
        self._phase_started = time.perf_counter()
        self._base_grid: np.ndarray | None = None
        self._pictures = pictures
        self._rewards: list[float] = []  # of the stage so far
        self.seconds: dict[str, float] = defaultdict(float)
        self.position = Position()
        self._pulled_bytes = self._steps = 0  # of the stage so far, in this process

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the block's wall time to the phase."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._end_phase(name, self.position, time.perf_counter() - started)

    def close(self) -> None:
        self._log.close()

    # -- stage_loop.Observer ------------------------------------------------------------------------------

    def stage_started(self, stage: int, weights: PolicyWeights) -> None:
        self._rewards = []
        self._pulled_bytes = self._steps = 0
        self._phase_started = time.perf_counter()

    def unit_collected(self, report: UnitReport, done: int, total: int) -> None:
        elapsed = time.perf_counter() - self._phase_started
        rewards = [r for group in report.groups for r in group.rewards]
        speed = done * len(rewards) / elapsed
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
        self._rewards += rewards
        facts = {"throughput/images_per_s": speed, "reward/mean": float(np.mean(self._rewards))}
        self._display.update(f"{self._title(stage)} sampling", done, total, facts)
        if self._stop.signal_number is not None:
            raise StopRequested(self._stop.signal_number)

    def stage_collected(
        self, stage: int, reports: Sequence[UnitReport], account: Mapping[str, int], again: bool
    ) -> None:
        step, elapsed = self._first_step(stage), time.perf_counter() - self._phase_started
        images = sum(len(g.rewards) for r in reports if r.sampler != RESTORED for g in r.groups)
        self._end_phase("sampling", Position(stage), elapsed, **{"throughput/images_per_s": images / elapsed})
        self._phase_started = time.perf_counter()
        self._log.telemetry("ledger", stage, step, self._fleet_counts(), **account)
        if again:
            return  # the metrics hold this stage's row from before the cut
        groups = [group for report in reports for group in report.groups]
        rewards = np.array([g.rewards for g in groups])
        version = groups[0].weights_version
        values = {
            "replay/groups": len(groups),
            "replay/bytes": sum(g.nbytes for g in groups),
            "policy/version": version,
            "policy/staleness": stage - version // self._config.stage.steps,
            "reward/mean": float(rewards.mean()),
            "reward/std_within": float(rewards.std(axis=1).mean()),
        }
        for name in groups[0].monitors:
            values[f"reward/monitor/{name}"] = float(np.mean([g.monitors[name] for g in groups]))
        self._log.metrics("stage", stage, step, values, weights_checksum=groups[0].weights_checksum)
        self._checkpoints.note_reward(Position(stage).name, float(rewards.mean()))

    def steps_taken(self, position: Position, metrics: Sequence[StepMetrics], behaviour: PolicyWeights) -> None:
        self._steps += len(metrics)
        for row in metrics:
            self._pulled_bytes += row.pulled_bytes
            self._log.metrics("step", position.stages, row.step, row.values)
        last, per_stage = metrics[-1], self._config.stage.steps
        facts = {name: last.values.get(name, math.nan) for name in ("loss", "log_ratio/clip_fraction")}
        self._display.update(f"{self._title(position.stages)} training", position.steps, per_stage, facts)
        every, stop = self._config.checkpoint.every_steps, self._stop.signal_number
        if position.steps < per_stage and (stop is not None or (every and last.step % every == 0)):
            self.checkpoint(position, behaviour)
        if position.steps < per_stage and stop is not None:
            raise StopRequested(stop)

    def stage_finished(self, stage: int, weights: PolicyWeights) -> None:
        elapsed = time.perf_counter() - self._phase_started
        facts = {"throughput/steps_per_s": self._steps / elapsed, "replay/pulled_bytes": self._pulled_bytes}
        self._end_phase("training", Position(stage, self._config.stage.steps), elapsed, **facts)
        self.position = Position(stage + 1)
        if self._pictures:
            self.save_images(Position(stage + 1).name, f"after stage {stage + 1}", weights)
        self.checkpoint(Position(stage + 1))
        if self._stop.signal_number is not None:
            raise StopRequested(self._stop.signal_number)

    # -- files --------------------------------------------------------------------------------------------

    def checkpoint(self, position: Position, behaviour: PolicyWeights | None = None) -> None:
        """Writes a checkpoint from which the rest of the run gives the same bytes."""
        with self.phase("saving"):
            state = self._learner.state_dict()
            self.save_lora(state["weights"])
            self._checkpoints.save(Checkpoint(state, position, behaviour, self._log.metrics_bytes))
            self._dir.publish()
        self.position = position

    def save_lora(self, weights: PolicyWeights) -> None:
        save_diffusers_lora(self._dir.lora, weights, lora_config(self._config), lora_origin(self._config))

    def save_images(self, name: str, title: str, weights: PolicyWeights) -> None:
        """Draws the grid with the weights broadcast last; from the second on, beside the base model's."""
        with self.phase("rendering"):
            images, prompts = draw_grid(self._config, self._sets, self._fleet, weights.version), self._rows()
            sheet = save_grid(self._dir.images / f"{name}.png", images, prompts, [title])
            if self._base_grid is None:
                self._base_grid = images
            else:
                both = np.concatenate([self._base_grid, images], axis=1)
                sheet = save_grid(self._dir.images / "before-after.png", both, prompts, ["base model", title])
            self._log.image(weights.version, "images", sheet)

    def record_judgement(self, judgement: Judgement, weights_version: int) -> None:
        values = {
            f"evaluate/{name}/{scorer}": float(scores.mean())
            for name, by_scorer in judgement.scores.items()
            for scorer, scores in by_scorer.items()
        }
        self._log.metrics("evaluation", self.position.stages, weights_version, values)

    def _rows(self) -> tuple[str, ...]:
        return grid_prompts(self._config, self._sets)

    def _title(self, stage: int) -> str:
        return f"stage {stage + 1}/{self._config.stage.count}"

    def _first_step(self, stage: int) -> int:
        return stage * self._config.stage.steps

    def _fleet_counts(self) -> dict[str, float]:
        fleet = self._fleet
        return {"fleet/deaths": fleet.deaths, "fleet/retried": fleet.retried, "fleet/lost": fleet.lost}

    def _end_phase(self, name: str, position: Position, elapsed: float, **facts: float) -> None:
        """Adds wall time to a phase, and tells of it."""
        self.seconds[name] += elapsed
        step = self._first_step(position.stages) + position.steps
        self._log.telemetry("phase", position.stages, step, {f"phase/{name}_s": elapsed, **facts})
