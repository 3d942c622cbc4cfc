"""What a person sees of a run's stages: what is done, the reward beside the base model's, and how long it takes yet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from raydense.records.metrics import read_rows
from raydense.records.progress import ProgressDisplay
from raydense.training.time_left import TimeLeft


def first_reward(metrics: Path) -> float | None:
    """Mean reward of the first stage, which the base model drew, where a run that continues has it."""
    rows = (row for row in read_rows(metrics) if row["kind"] == "stage" and row["stage"] == 0)
    return next((row["reward/mean"] for row in rows), None)


class StageDisplay:
    """Args: stages: of the run. base_reward: mean of the first stage, where it is known."""

    def __init__(self, display: ProgressDisplay, stages: int, base_reward: float | None = None) -> None:
        self._display, self._stages, self._base_reward = display, stages, base_reward
        self._left = TimeLeft(stages)
        self._rewards: list[float] = []  # of the stage so far

    def title(self, stage: int) -> str:
        return f"stage {stage + 1} of {self._stages}"

    def base_judged(self, seconds: float) -> None:
        """How long that took: the tuned model will be judged at the end."""
        self._left.judged(seconds)

    def started(self) -> None:
        self._rewards = []
        self._left.stage_started()

    def collected(self, stage: int, rewards: Sequence[float], done: int, total: int, *, shown: bool) -> None:
        """Of one unit. Args: done, total: units. shown: False where steps are on display at the same time."""
        self._rewards += rewards
        if shown:
            what = f"{self.title(stage)}, drawing and scoring"
            self._display.update(what, done, total, self._facts(), self._left.seconds(stage, 0.0))

    def sampled(self, stage: int) -> None:
        """All of a stage."""
        self._left.stage_sampled()
        if stage == 0 and self._rewards:
            self._base_reward = float(np.mean(self._rewards))  # version 0 of the weights is the base model

    def trained(self, stage: int, done: int, total: int, loss: float) -> None:
        """Args: done, total: gradient steps of the stage."""
        facts, left_s = {"loss": loss, **self._facts()}, self._left.seconds(stage, done / total)
        self._display.update(f"{self.title(stage)}, learning", done, total, facts, left_s)

    def finished(self) -> None:
        self._left.stage_finished()

    def _facts(self) -> dict[str, float]:
        facts = {"reward": float(np.mean(self._rewards))} if self._rewards else {}
        return facts if self._base_reward is None else {**facts, "base model": self._base_reward}
