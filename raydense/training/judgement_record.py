"""What judging found, into the run directory; and judging while the run trains, where `evaluate.every_steps` asks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from raydense.config import Config
from raydense.core.interfaces import Fleet, Learner
from raydense.core.types import Position
from raydense.planning.units import PromptSets, evaluation_due, held_out_prompts
from raydense.records.run_dir import RunDirectory
from raydense.records.scores import Judgement
from raydense.records.telemetry import RunLog
from raydense.records.thumbnails import save_thumbnails
from raydense.training.judging import judge_prompts
from raydense.training.normalising import StageScales
from raydense.training.result import result_of
from raydense.training.stage_metrics import judgement_values


class JudgementRecord:
    """One run's. `during`: whether the run can draw at all, so that held-out prompts can be judged while it trains."""

    def __init__(
        self, config: Config, sets: PromptSets, run_dir: RunDirectory, log: RunLog, scales: StageScales, during: bool
    ) -> None:
        self._config, self._held_out, self._images = config, held_out_prompts(config, sets), run_dir.images
        self._log, self._scales, self._during = log, scales, during

    def is_due(self, step: int) -> bool:
        """Whether the held-out prompts are judged after this gradient step."""
        return self._during and evaluation_due(self._config, step)

    def judge_held_out(self, fleet: Fleet[Any], learner: Learner[Any], position: Position) -> None:
        """Judges the held-out prompts with what the learner would give; nothing of it comes back into the run."""
        weights = result_of(learner)
        fleet.broadcast(weights)
        pictures = self._config.evaluate.images_per_prompt
        judgement = judge_prompts(self._held_out, pictures, fleet, weights.version)
        self._write(self._scales.restate(judgement), position, weights.steps)

    def of_model(self, judgement: Judgement, position: Position, step: int) -> None:
        """Of the base and the tuned model; what was judged during training has its row already."""
        judged_before = self._held_out if self.is_due(step) else ()
        scores = {name: by for name, by in judgement.scores.items() if name not in judged_before}
        self._write(replace(judgement, scores=scores), position, step)
        if judgement.pictures:
            save_thumbnails(self._images / f"judged-{step:06d}.zip", judgement.pictures)

    def of_last_step(self, judgement: Judgement, position: Position, step: int) -> None:
        """Of the weights whose average is the result: their scores are beside the result's, in scores.json alone."""
        self._log.monitors_failed(judgement.failures, position.stages, step)

    def _write(self, judgement: Judgement, position: Position, step: int) -> None:
        self._log.monitors_failed(judgement.failures, position.stages, step)
        values, ends = judgement_values(judgement.scores)
        if values:
            self._log.metrics("evaluation", position.stages, step, values, intervals=ends)
