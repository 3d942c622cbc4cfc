"""Batches of stored transitions for the learner's tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from learner.batch_source import BatchSource
from learner.batching import draw_batch
from learner.clips import FixedClip
from learner.losses import step_weights
from learner.objective import TransitionBatch, gather_transitions
from learner.references import ReferenceCache
from learner.sgd_learner import SGDLearner
from raydense.core.replay import ReplayBuffer
from raydense.core.types import TrajectoryGroup
from raydense.diffusion.policy import Policy


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., TransitionBatch]:
    """One tuple of each group: make_batch(groups, tuple_size=3)."""

    def make(
        groups: Sequence[TrajectoryGroup], *, tuple_size: int = 2, step_draws: int = 2, seed: int = 0
    ) -> TransitionBatch:
        num_steps = groups[0].log_probs.shape[1]
        plan = draw_batch(
            torch.arange(len(groups)),
            torch.stack([torch.tensor(g.rewards) for g in groups]),
            step_weights(range(num_steps), 0.9),
            tuple_size=tuple_size,
            tuples=1,
            tuple_choice="random",
            ties="random",
            step_draws=step_draws,
            draws=torch.Generator().manual_seed(seed),
        )
        return gather_transitions(plan, groups)

    return make


@pytest.fixture(scope="session")
def make_learner() -> Callable[..., SGDLearner[TrajectoryGroup]]:
    """A learner whose handles are the groups themselves: make_learner(policy, lr=1e-3)."""

    def make(policy: Policy, *, capacity: int = 5, **changes: Any) -> SGDLearner[TrajectoryGroup]:
        draws: dict[str, Any] = {
            "run_seed": 3,
            "batch_groups": 4,
            "tuple_size": 2,
            "tuples": 1,
            "tuple_choice": "random",
            "step_draws": 2,
            "micro_batch": None,
        }
        options: dict[str, Any] = {
            "total_steps": 4,
            "c": 10.0,
            "clip": 0.05,
            "balance": None,
            "reg_to_pi_init": True,
            "reg_to_pi_old": False,
            "no_reg_warmup_ratio": 0.0,
            "lr": 1e-2,
            "weight_decay": 0.0,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
            "max_grad_norm": 1.0,
            "threads": 1,
        }
        fetch, ties = changes.pop("fetch", lambda groups: groups), changes.pop("ties", "random")
        batches: BatchSource[TrajectoryGroup] = BatchSource(
            ReplayBuffer(capacity),
            fetch,
            step_weights=step_weights(range(policy.schedule.num_steps), 0.9),
            share=(0, 1),
            device=policy.device,
            ties=ties,
            **{name: changes.pop(name, value) for name, value in draws.items()},
        )
        references = ReferenceCache(policy, capacity, keep=4)
        options |= changes
        if isinstance(options["clip"], float):
            options["clip"] = FixedClip(options["clip"])
        return SGDLearner(policy, batches, references, ties=ties, **options)

    return make
