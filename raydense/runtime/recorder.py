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
from raydense.core.metrics import JsonLines
from raydense.core.types import PolicyWeights, Position, StepMetrics, UnitReport
from raydense.runtime.build import lora_config, lora_origin
from raydense.runtime.checkpoints import CheckpointStore
from raydense.runtime.grids import save_grid
from raydense.runtime.judging import Judgement, draw_grid
from raydense.runtime.normalising import StageScales
from raydense.runtime.plan import PromptSets, grid_prompts
from raydense.runtime.progress import ProgressDisplay
from raydense.runtime.run_dir import RunDirectory
from raydense.runtime.stopping import StopFlag, StopRequested
from raydense.runtime.watch import HackingSuspected, HackingWatch, Sighting


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
        pictures: bool = True,
        scales: StageScales | None = None,  # None: nothing is sampled, so that there is no reward to watch either
    ) -> None:
        self._config, self._sets, self._dir = config, sets, run_dir
        self._fleet, self._learner, self._display = fleet, learner, display
        self._checkpoints, self._stop = checkpoints, stop
        self._metrics = JsonLines(run_dir.metrics, keep_bytes=metrics_bytes)
        self._telemetry = JsonLines(run_dir.root / "telemetry.jsonl")
        self._phase_started = time.perf_counter()
        self._base_grid: np.ndarray | None = None
        self._pictures = pictures
        self._scales = scales
        self._watch = HackingWatch(config.reward, scales, run_dir.root) if scales else None
        self._rewards: list[float] = []  # of the stage so far
        self.seconds: dict[str, float] = defaultdict(float)
        self.position = Position()
        self._pulled_bytes = 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the block's wall time to the phase."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - started

    def close(self) -> None:
        self._metrics.close()
        self._telemetry.close()

    # -- stage_loop.Observer ------------------------------------------------------------------------------

    def stage_started(self, stage: int, weights: PolicyWeights) -> None:
        self._rewards = []
        self._phase_started = time.perf_counter()

    def unit_collected(self, report: UnitReport, done: int, total: int) -> None:
        elapsed = time.perf_counter() - self._phase_started
        rewards = [r for group in report.groups for r in group.rewards]
        speed = done * len(rewards) / elapsed
        stage = report.unit.stage
        self._telemetry.write(
            {
                "kind": "unit",
                "stage": stage,
                "unit": report.unit.index,
                "sampler": report.sampler,
                "seconds": dict(report.seconds),
                "images": len(rewards),
                "weights_version": report.unit.weights_version,
            }
        )
        self._rewards += rewards
        facts = {"images/s": speed, "reward": float(np.mean(self._rewards))}
        self._display.update(f"{self._title(stage)} sampling", done, total, facts)
        if self._stop.signal_number is not None:
            raise StopRequested(self._stop.signal_number)

    def stage_collected(
        self, stage: int, reports: Sequence[UnitReport], account: Mapping[str, int], again: bool
    ) -> None:
        self._end_phase("sampling", stage)
        fleet = {"retried": self._fleet.retried, "lost": self._fleet.lost, "sampler_deaths": self._fleet.deaths}
        self._telemetry.write({"kind": "ledger", "stage": stage, **account, **fleet})
        if again:
            return  # the metrics hold this stage's row from before the cut
        groups = [group for report in reports for group in report.groups]
        rewards = np.array([g.rewards for g in groups])
        row = {
            "kind": "stage",
            "stage": stage,
            "groups": len(groups),
            "replay_bytes": sum(g.nbytes for g in groups),
            "weights_version": groups[0].weights_version,
            "weights_checksum": groups[0].weights_checksum,
            "reward": float(rewards.mean()),
            "reward_std_within": float(rewards.std(axis=1).mean()),
        }
        for name in groups[0].monitors:
            row[f"monitor/{name}"] = float(np.mean([g.monitors[name] for g in groups]))
        sighting = self._watch.look(stage, reports) if self._watch else Sighting({}, ())
        self._metrics.write({**row, **sighting.values})
        self._checkpoints.note_reward(Position(stage).name, float(rewards.mean()))
        self._say_suspicion(stage, sighting.signs)

    def steps_taken(self, position: Position, metrics: Sequence[StepMetrics], behaviour: PolicyWeights) -> None:
        for row in metrics:
            self._pulled_bytes += row.pulled_bytes
            self._metrics.write({"kind": "step", "stage": position.stages, "step": row.step, **row.values})
        last, per_stage = metrics[-1], self._config.stage.steps
        facts = {name: last.values.get(name, math.nan) for name in ("loss", "clipped_fraction")}
        self._display.update(f"{self._title(position.stages)} training", position.steps, per_stage, facts)
        every, stop = self._config.checkpoint.every_steps, self._stop.signal_number
        if position.steps < per_stage and (stop is not None or (every and last.step % every == 0)):
            self.checkpoint(position, behaviour)
        if position.steps < per_stage and stop is not None:
            raise StopRequested(stop)

    def stage_finished(self, stage: int, weights: PolicyWeights) -> None:
        self._end_phase("training", stage, pulled_bytes=self._pulled_bytes)
        self._pulled_bytes = 0
        if self._pictures:
            self.save_images(Position(stage + 1).name, f"after stage {stage + 1}", weights)
        self.checkpoint(Position(stage + 1))
        if self._stop.signal_number is not None:
            raise StopRequested(self._stop.signal_number)

    def _say_suspicion(self, stage: int, signs: Sequence[str]) -> None:
        """Raises: HackingSuspected where the configuration wants the run to stop."""
        for sign in signs:
            self._display.say(f"{self._title(stage)}: reward hacking suspected: {sign}")
        if signs and self._config.reward.watch.stop:
            raise HackingSuspected(
                f"reward.watch.stop: reward hacking suspected: {'; '.join(signs)}; look at {self._dir.images}, then "
                f"take an earlier checkpoint, or go on with --resume {self._dir.shown} --set reward.watch.stop=false"
            )

    # -- files --------------------------------------------------------------------------------------------

    def checkpoint(self, position: Position, behaviour: PolicyWeights | None = None) -> None:
        """Writes a checkpoint from which the rest of the run gives the same bytes."""
        with self.phase("saving"):
            state = self._learner.state_dict()
            self.save_lora(state["weights"])
            self._checkpoints.save(Checkpoint(state, position, behaviour, self._metrics.size))
            self._dir.publish()
        self.position = position

    def save_lora(self, weights: PolicyWeights) -> None:
        save_diffusers_lora(self._dir.lora, weights, lora_config(self._config), lora_origin(self._config))

    def save_images(self, name: str, title: str, weights: PolicyWeights) -> None:
        """Draws the grid with the weights broadcast last; from the second on, beside the base model's."""
        with self.phase("rendering"):
            images, prompts = draw_grid(self._config, self._sets, self._fleet, weights.version), self._rows()
            save_grid(self._dir.images / f"{name}.png", images, prompts, [title])
            if self._base_grid is None:
                self._base_grid = images
            else:
                both = np.concatenate([self._base_grid, images], axis=1)
                save_grid(self._dir.images / "before-after.png", both, prompts, ["base model", title])

    def record_judgement(self, judgement: Judgement, weights_version: int) -> None:
        means = {name: {s: float(v.mean()) for s, v in by.items()} for name, by in judgement.scores.items()}
        self._metrics.write({"kind": "judgement", "weights_version": weights_version, "scores": means})

    def _rows(self) -> tuple[str, ...]:
        return grid_prompts(self._config, self._sets)

    def _title(self, stage: int) -> str:
        return f"stage {stage + 1}/{self._config.stage.count}"

    def _end_phase(self, name: str, stage: int, **facts: float) -> None:
        now = time.perf_counter()
        self.seconds[name] += now - self._phase_started
        self._telemetry.write({"kind": name, "stage": stage, "seconds": now - self._phase_started, **facts})
        self._phase_started = now
