"""Which denoising steps the loss drew: a function of the configuration and the seed, drawn here once more."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from learner.batching import draw_batch, step_generator
from learner.losses import step_weights
from raydense.config import Config
from raydense.core.replay import ReplayBuffer

MOST = 4000  # gradient steps that are drawn again; of more, evenly spaced ones


def draw_counts(config: Config, steps_taken: int) -> tuple[NDArray[np.int64], int]:
    """How often each denoising step was drawn: int64 [T], and in how many of the gradient steps this was counted."""
    steps, train = config.steps, config.train
    replay: ReplayBuffer[int] = ReplayBuffer(config.stage.groups)
    replay.replace(range(config.stage.groups))
    weights = step_weights(steps.count, steps.gamma, steps.exclude_last)
    rewards = torch.zeros(train.batch_groups, config.sampler.keep)  # they decide on trajectories, never on steps
    counts = np.zeros(steps.count, dtype=np.int64)
    chosen = np.unique(np.linspace(0, steps_taken - 1, min(steps_taken, MOST)).astype(int))
    for step in chosen:
        draws = step_generator(config.seed, int(step))
        plan = draw_batch(
            replay.draw(train.batch_groups, draws),
            rewards,
            weights,
            tuple_size=train.tuple_size,
            tuples=train.tuples,
            tuple_choice=train.tuple_choice,
            ties=train.ties,
            step_draws=steps.draws,
            draws=draws,
        )
        counts += np.bincount(plan.steps.flatten().numpy(), minlength=steps.count)
    return counts, len(chosen)


def expected_shares(config: Config) -> NDArray[np.float64]:
    """P(t), which the draws follow: float64 [T]."""
    steps = config.steps
    weights = step_weights(steps.count, steps.gamma, steps.exclude_last).numpy()
    return np.pad(weights, (0, steps.exclude_last))
