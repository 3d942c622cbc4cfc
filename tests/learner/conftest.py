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
from learner.objective import DensePreference, Objective
from learner.references import ReferenceCache
from learner.sgd_learner import SGDLearner
from learner.transitions import TransitionBatch, gather_transitions
from raydense.core.replay import ReplayBuffer
from raydense.core.types import TrajectoryGroup
from raydense.diffusion.policy import Policy


@pytest.fixture(scope="module")
def policy(make_policy: Callable[..., Policy], perturbed: Callable[..., Any]) -> Policy:
    """A policy some way from the initial one, so that every ratio is away from 0."""
    policy = make_policy()
    policy.bind(perturbed(policy, scale=0.05))
    return policy


@pytest.fixture(scope="module")
def groups(make_policy: Callable[..., Policy], make_groups: Callable[..., Any], perturbed: Callable[..., Any]) -> Any:
    """Groups of an older policy."""
    old = make_policy()
    old.bind(perturbed(old, scale=0.04, seed=1))
    return make_groups(old, count=3, keep=4)


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
    """A learner whose handles are the groups themselves: make_learner(policy, lr=1e-3).

    objective: made of the policy; None: the dense preference loss.
    """

    def make(policy: Policy, *, capacity: int = 5, **changes: Any) -> SGDLearner[TrajectoryGroup]:
        draws: dict[str, Any] = {
            "run_seed": 3,
            "batch_groups": 4,
            "tuple_size": 2,
            "tuples": 1,
            "tuple_choice": "random",
            "step_draws": 2,
            "micro_batch": None,
            "levels": None,
        }
        dense: dict[str, Any] = {
            "c": 10.0,
            "clip": 0.05,
            "balance": None,
            "to_init": True,
            "to_old": False,
            "warm_up_steps": 0,
        }
        options: dict[str, Any] = {
            "lr": 1e-2,
            "weight_decay": 0.0,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
            "max_grad_norm": 1.0,
            "threads": 1,
        }
        fetch, ties = changes.pop("fetch", lambda groups: groups), changes.pop("ties", "random")
        drawn, loss = ({name: changes.pop(name, value) for name, value in of.items()} for of in (draws, dense))
        weights = drawn["levels"].weights if drawn["levels"] else step_weights(range(policy.schedule.num_steps), 0.9)
        batches: BatchSource[TrajectoryGroup] = BatchSource(
            ReplayBuffer(capacity),
            fetch,
            step_weights=weights,
            share=(0, 1),
            device=policy.device,
            ties=ties,
            **drawn,
        )
        if isinstance(loss["clip"], float):
            loss["clip"] = FixedClip(loss["clip"])
        make_objective: Callable[[Policy], Objective] | None = changes.pop("objective", None)
        if make_objective is None:
            objective: Objective = DensePreference(policy, ReferenceCache(policy, capacity, keep=4), ties=ties, **loss)
        else:
            objective = make_objective(policy)
        return SGDLearner(policy, batches, objective, **options | changes)

    return make
