"""Batches of stored transitions for the learner's tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from learner.batching import plan_batch
from learner.losses import step_weights
from learner.objective import TransitionBatch, gather_transitions
from learner.sgd_learner import SGDLearner
from raydense.core.policy import Policy
from raydense.core.replay import ReplayBuffer
from raydense.core.types import TrajectoryGroup


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., TransitionBatch]:
    """One tuple of each group: make_batch(groups, tuple_size=3)."""

    def make(
        groups: Sequence[TrajectoryGroup], *, tuple_size: int = 2, step_draws: int = 2, seed: int = 0
    ) -> TransitionBatch:
        num_steps = groups[0].log_probs.shape[1]
        plan = plan_batch(
            torch.arange(len(groups)),
            torch.stack([torch.tensor(g.rewards) for g in groups]),
            step_weights(num_steps, 0.9),
            tuple_size=tuple_size,
            tuples=1,
            tuple_choice="random",
            step_draws=step_draws,
            draws=torch.Generator().manual_seed(seed),
        )
        return gather_transitions(plan, groups)

    return make


@pytest.fixture(scope="session")
def make_learner() -> Callable[..., SGDLearner[TrajectoryGroup]]:
    """A learner whose handles are the groups themselves: make_learner(policy, lr=1e-3)."""

    def make(policy: Policy, *, capacity: int = 5, **changes: Any) -> SGDLearner[TrajectoryGroup]:
        options: dict[str, Any] = {
            "run_seed": 3,
            "total_steps": 4,
            "keep": 4,
            "batch_groups": 4,
            "tuple_size": 2,
            "tuples": 1,
            "tuple_choice": "random",
            "gamma": 0.9,
            "step_draws": 2,
            "exclude_last": 0,
            "c": 10.0,
            "clip": 0.05,
            "reg_to_pi_init": True,
            "reg_to_pi_old": False,
            "no_reg_warmup_ratio": 0.0,
            "lr": 1e-2,
            "weight_decay": 0.0,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
            "max_grad_norm": 1.0,
            "micro_batch": None,
            "cache_references": True,
            "autocast": None,
            "threads": 1,
        }
        fetch = changes.pop("fetch", lambda groups: groups)
        return SGDLearner(policy, ReplayBuffer(capacity), fetch, **{**options, **changes})

    return make
