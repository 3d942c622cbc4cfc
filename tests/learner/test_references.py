"""The reference policy's log-probs: computed once a transition and stage, and part of the learner's state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from learner.gang import Gang
from learner.references import ReferenceCache
from learner.sgd_learner import SGDLearner
from learner.transitions import TransitionBatch
from raydense.config import load_config
from raydense.core.types import TrajectoryGroup
from raydense.diffusion.policy import Policy
from raydense.wiring.roles import make_batches

Groups = list[TrajectoryGroup]


@pytest.fixture(scope="module")
def groups(make_policy: Callable[..., Policy], make_groups: Callable[..., Groups]) -> Groups:
    return make_groups(make_policy(), count=3, keep=4)


@pytest.fixture
def policy(make_policy: Callable[..., Policy], perturbed: Callable[..., Any]) -> Policy:
    policy = make_policy()
    policy.bind(perturbed(policy, scale=0.05))
    return policy


class Calls:
    """Rows of each U-Net call."""

    def __init__(self, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        forward = policy.network.forward
        monkeypatch.setattr(policy.network, "forward", lambda x, *rest: self.rows.append(len(x)) or forward(x, *rest))


def direct(policy: Policy, batch: TransitionBatch, groups: Groups) -> np.ndarray:
    """One transition a call, with the LoRA off."""
    expected = np.zeros(batch.draws.shape)
    plan = batch.plan
    with torch.no_grad(), policy.reference():
        for b, n, s in np.ndindex(*expected.shape):
            group = groups[int(plan.groups[b])]
            k, t = int(plan.trajectories[b, n]), int(plan.steps[b, s])
            x, x_next = (torch.from_numpy(group.latents[k, i].copy())[None] for i in (t, t + 1))
            embeds = {"prompt_embeds": torch.from_numpy(group.conditioning["prompt_embeds"].copy())[None]}
            expected[b, n, s] = float(policy.log_prob(x, x_next, torch.tensor([t]), embeds))
    return expected


def test_what_is_known_is_not_computed_again(
    policy: Policy, groups: Groups, make_batch: Callable[..., TransitionBatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make_batch(groups, seed=0), make_batch(groups, seed=1)
    cache, calls = ReferenceCache(policy, groups=3, keep=4), Calls(policy, monkeypatch)
    cache.begin_stage(0)
    cache.forget_changed(dict.fromkeys(range(3), 7))
    found = []
    for batch in (first, first, second, second):
        found.append(cache.look_up(batch).numpy())
        cache.remember(batch.plan, found[-1])
    shared = drawn(first) & drawn(second)
    assert 0 < len(shared) < len(drawn(second))
    assert calls.rows == [2 * len(drawn(first)), 2 * len(drawn(second) - shared)]  # both guidance halves
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[2], found[3])
    monkeypatch.undo()
    np.testing.assert_allclose(found[0], direct(policy, first, groups), atol=2e-5)
    np.testing.assert_allclose(found[2], direct(policy, second, groups), atol=2e-5)


def drawn(batch: TransitionBatch) -> set[tuple[int, int, int]]:
    indices = np.broadcast_arrays(*(i.numpy() for i in batch.plan.index()))
    return set(zip(*(i.ravel().tolist() for i in indices), strict=True))


@pytest.mark.parametrize("how", ["another stage", "another group", "not enabled"])
def test_what_may_differ_is_computed_anew(
    how: str,
    policy: Policy,
    groups: Groups,
    make_batch: Callable[..., TransitionBatch],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = make_batch(groups)
    cache, calls = ReferenceCache(policy, groups=3, keep=4, enabled=how != "not enabled"), Calls(policy, monkeypatch)
    cache.begin_stage(0)
    cache.forget_changed({0: 7, 1: 8, 2: 9})
    cache.remember(batch.plan, cache.look_up(batch).numpy())
    cache.begin_stage(1 if how == "another stage" else 0)
    cache.forget_changed({0: 7, 1: 8 if how != "another group" else 88, 2: 9})
    cache.look_up(batch)
    again = {i for i in drawn(batch) if i[0] == 1 or how != "another group"}
    assert calls.rows == [2 * len(drawn(batch)), 2 * len(again)]


def test_a_learner_that_continues_computes_what_the_first_would(
    make_policy: Callable[..., Policy], make_learner: Callable[..., SGDLearner[TrajectoryGroup]], groups: Groups
) -> None:
    def begin() -> SGDLearner[TrajectoryGroup]:
        learner = make_learner(make_policy(), batch_groups=3, micro_batch=2)
        learner.begin_stage(0, groups)
        return learner

    whole, first, second = begin(), begin(), begin()
    expected = whole.train(6)
    rows = first.train(3)
    second.load_state_dict(first.state_dict())
    second.begin_stage(0, groups)
    assert [*rows, *second.train(3)] == expected
    assert second.weights().checksum == whole.weights().checksum
    known = whole.state_dict()["references"]["log_probs"]
    assert 0 < int(known.isnan().sum()) < known.numel()  # some were drawn, and not all


def test_a_group_sampled_again_on_another_device_is_scored_again(
    make_policy: Callable[..., Policy], make_learner: Callable[..., SGDLearner[TrajectoryGroup]], groups: Groups
) -> None:
    learner = make_learner(make_policy(), batch_groups=3)
    learner.begin_stage(0, groups)
    learner.train(3)
    before = learner.state_dict()["references"]
    others = [replace(g, log_probs=g.log_probs + np.float32(1e-3), latents=g.latents * np.float16(0.9)) for g in groups]
    learner.begin_stage(0, others)
    learner.train(1)
    after = learner.state_dict()["references"]
    seen = after["fingerprints"] != before["fingerprints"]
    assert bool(seen.any())
    both = ~(before["log_probs"].isnan() | after["log_probs"].isnan()) & seen[:, None, None]
    assert float((before["log_probs"] - after["log_probs"])[both].abs().min()) > 1e-4


@pytest.mark.parametrize(
    ("preset", "micro_batch", "drawn_twice", "known"),
    [
        ("tiny", "8", 0.142, 0.445),
        pytest.param("single-prompt", "1", 0.053, 0.23, marks=pytest.mark.slow),
        pytest.param("multi-prompt", "4", 0.0, 0.417, marks=pytest.mark.slow),
    ],
)
def test_the_share_of_a_stages_draws_that_costs_nothing(
    preset: str, micro_batch: str, drawn_twice: float, known: float
) -> None:
    """Of all draws, those that repeat one of their micro-batch; of the others, those that an earlier step made."""
    config = load_config(None, preset, [f"learner.micro_batch={micro_batch}"])
    groups, keep, steps = config.stage.groups, config.sampler.keep, config.steps.count
    draws = np.random.default_rng(0)
    latents, log_probs = np.zeros((keep, steps + 1, 1, 1, 1), np.float16), np.zeros((keep, steps), np.float32)
    stored = [
        TrajectoryGroup(0, i, "", {}, latents, log_probs, rewards.astype(np.float32), 0, "")
        for i, rewards in enumerate(draws.standard_normal((groups, keep)))
    ]
    source = make_batches(config, lambda some: some, torch.device("cpu"), Gang(), groups)
    source.begin_stage(0, stored)
    seen = np.zeros((groups, keep, steps), bool)
    drawn = once = new = 0
    for step in range(config.stage.steps):
        batch, before = source.take(step), seen.copy()
        for _, part in batch.parts:
            index = np.broadcast_arrays(*(i.numpy() for i in part.plan.index()))
            distinct = np.unique(np.ravel_multi_index(index, seen.shape))
            drawn, once = drawn + part.draws.numel(), once + len(part.t)
            new += int((~before.flat[distinct]).sum())
            seen.flat[distinct] = True
    assert 1 - once / drawn == pytest.approx(drawn_twice, abs=0.01)
    assert 1 - new / once == pytest.approx(known, abs=0.01)
