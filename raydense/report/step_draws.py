"""Which denoising steps the loss drew: a function of the configuration and the seed, drawn here once more.

A run does so while it trains, for its metrics; a report only of what earlier code trained.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from learner.batching import draw_batch, step_generator
from learner.losses import step_weights
from raydense.config import Config
from raydense.core.replay import ReplayBuffer

MOST = 4000  # gradient steps that are drawn again; of more, evenly spaced ones


class StepDraws:
    """A run's batches without its groups: these decide on trajectories, never on steps."""

    def __init__(self, config: Config) -> None:
        steps, train = config.steps, config.train
        self._of_steps = train.draws_steps
        self._seed, self._groups, self._count = config.seed, train.batch_groups, steps.count
        self._replay: ReplayBuffer[int] = ReplayBuffer(config.stage.groups)
        self._replay.replace(range(config.stage.groups))
        self._rewards = torch.zeros(train.batch_groups, config.sampler.keep)
        self._weights = step_weights(steps.drawn, steps.gamma)
        self._rest: Any = {
            "tuple_size": train.tuple_size,
            "tuples": train.tuples,
            "tuple_choice": train.tuple_choice,
            "ties": train.ties,
            "step_draws": steps.draws,
        }

    def counts(self, step: int) -> list[int]:
        """How often a gradient step draws each of the T denoising steps. Args: step: as in metrics, from 1."""
        draws = step_generator(self._seed, step - 1)
        drawn = self._replay.draw(self._groups, draws)
        plan = draw_batch(drawn, self._rewards, self._weights, draws=draws, **self._rest)
        counts: list[int] = torch.bincount(plan.steps.flatten(), minlength=self._count).tolist()
        return counts

    def notes(self, step: int) -> dict[str, list[int]]:
        """`step_draws` for a row of metrics; nothing of a loss on finished pictures. Args: as of `counts`."""
        return {"step_draws": self.counts(step)} if self._of_steps else {}


def draw_counts(config: Config, steps_taken: int) -> tuple[NDArray[np.int64], int]:
    """How often a run drew each denoising step: int64 [T], and in how many of its gradient steps this was counted."""
    draws, counts = StepDraws(config), np.zeros(config.steps.count, dtype=np.int64)
    chosen = np.unique(np.linspace(1, steps_taken, min(steps_taken, MOST)).astype(int))
    for step in chosen:
        counts += draws.counts(int(step))
    return counts, len(chosen)
