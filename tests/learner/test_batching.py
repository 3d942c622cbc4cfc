"""Which groups, trajectories and steps a batch holds, and that its generator alone decides it."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from learner.batching import BatchDraws, draw_batch, first_unequal, step_generator
from learner.losses import step_weights


def plan(rewards: torch.Tensor, *, seed: int = 0, **changes: Any) -> BatchDraws:
    """A plan over groups 100, 101, … with these rewards [G, K]."""
    options: dict[str, Any] = {
        "weights": step_weights(range(10), 0.9),
        "tuple_size": 2,
        "tuples": 1,
        "tuple_choice": "random",
        "ties": "random",
        "step_draws": 3,
        "draws": torch.Generator().manual_seed(seed),
    }
    return draw_batch(torch.arange(len(rewards)) + 100, rewards, **{**options, **changes})


def random_rewards(groups: int, keep: int) -> torch.Tensor:
    return torch.randn((groups, keep), generator=torch.Generator().manual_seed(1))


def test_a_row_is_a_tuple_with_one_set_of_step_draws() -> None:
    batch = plan(random_rewards(6, 5), tuple_size=4, step_draws=3)
    assert len(batch) == 6
    assert batch.groups.tolist() == [100, 101, 102, 103, 104, 105]
    assert batch.trajectories.shape == (6, 4)
    assert batch.steps.shape == (6, 3)  # no trajectory axis: the tuple shares them
    assert batch.tie_noise.shape == (6, 4)


def test_several_tuples_of_a_group_are_drawn_independently() -> None:
    batch = plan(random_rewards(2, 5), tuples=50)
    assert batch.groups.tolist() == [100] * 50 + [101] * 50
    assert len({tuple(sorted(row)) for row in batch.trajectories[:50].tolist()}) > 5
    assert len({tuple(row) for row in batch.steps[:50].tolist()}) > 20


def test_random_tuples_have_distinct_members_and_every_pair_is_equally_likely() -> None:
    batch = plan(random_rewards(1, 4), tuples=6000)
    counts = dict.fromkeys(combinations(range(4), 2), 0)
    for first, second in batch.trajectories.tolist():
        assert first != second
        counts[min(first, second), max(first, second)] += 1
    assert chisquare(list(counts.values())).pvalue > 1e-3


@pytest.mark.parametrize("tuple_size", [3, 5])
def test_larger_tuples_have_distinct_members(tuple_size: int) -> None:
    for row in plan(random_rewards(40, 5), tuple_size=tuple_size).trajectories.tolist():
        assert len(set(row)) == tuple_size
        assert set(row) <= set(range(5))


def test_best_worst_takes_both_ends_of_the_reward_order() -> None:
    rewards = random_rewards(30, 5)
    batch = plan(rewards, tuple_choice="best_worst")
    chosen = rewards.gather(1, batch.trajectories)
    assert torch.equal(chosen.amax(1), rewards.amax(1))
    assert torch.equal(chosen.amin(1), rewards.amin(1))


def test_best_worst_of_three_adds_the_middle() -> None:
    batch = plan(torch.tensor([[0.1, 0.9, 0.5, 0.7, 0.3]]), tuple_choice="best_worst", tuple_size=3)
    assert sorted(batch.trajectories[0].tolist()) == [0, 1, 2]


def test_best_worst_among_equal_rewards_takes_distinct_members_at_random() -> None:
    batch = plan(torch.zeros(200, 3), tuple_choice="best_worst")
    pairs = {tuple(sorted(row)) for row in batch.trajectories.tolist()}
    assert pairs == set(combinations(range(3), 2))


# -- ties -------------------------------------------------------------------------------------------------


def assert_same(first: BatchDraws, second: BatchDraws) -> None:
    for name in ("groups", "trajectories", "steps", "tie_noise"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name


@pytest.mark.parametrize("choice", ["random", "best_worst"])
@pytest.mark.parametrize("tuple_size", [2, 4])
def test_without_equal_rewards_every_draw_is_the_same_whatever_ties_are(choice: str, tuple_size: int) -> None:
    options: dict[str, Any] = {"tuple_choice": choice, "tuple_size": tuple_size, "tuples": 3}
    assert_same(*(plan(random_rewards(40, 5), ties=ties, **options) for ties in ("marginal", "random")))


@pytest.mark.parametrize("choice", ["random", "best_worst"])
@pytest.mark.parametrize("tuple_size", [2, 3])
def test_equals_alone_are_drawn_only_where_a_group_has_nothing_else(choice: str, tuple_size: int) -> None:
    rewards = torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 1.0, 1.0, 0.0], [0.5, 0.5, 0.5, 0.5, 0.5]])
    batch = plan(rewards, ties="marginal", tuple_choice=choice, tuple_size=tuple_size, tuples=100)
    drawn = rewards.repeat_interleave(100, dim=0).gather(1, batch.trajectories)
    all_equal = (drawn == drawn[:, :1]).all(1).view(3, 100)
    assert all_equal.any(1).tolist() == [False, False, True]
    assert all(len(set(row)) == tuple_size for row in batch.trajectories.tolist())


def test_a_random_trajectory_meets_a_random_one_of_another_reward() -> None:
    rewards = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    pairs = plan(rewards, ties="marginal", tuples=6000).trajectories
    first, other = np.bincount(pairs[:, 0], minlength=4), pairs[pairs[:, 0] == 3][:, 1]
    assert chisquare(first).pvalue > 1e-3
    assert chisquare(np.bincount(other, minlength=3)).pvalue > 1e-3
    assert set(pairs[pairs[:, 0] != 3][:, 1].tolist()) == {3}


@given(st.lists(st.integers(0, 2), min_size=2, max_size=7), st.integers(2, 7), st.randoms(use_true_random=False))
def test_the_first_that_are_not_all_equal(rewards: list[int], size: int, random: Any) -> None:
    order, size = list(range(len(rewards))), min(size, len(rewards))
    random.shuffle(order)
    expected = order[:size]
    others = [k for k in order[size:] if rewards[k] != rewards[expected[0]]]
    if len({rewards[k] for k in expected}) == 1 and others:
        expected[-1] = others[0]
    assert first_unequal(torch.tensor([order]), torch.tensor([rewards]), size)[0].tolist() == expected


@pytest.mark.parametrize(("gamma", "exclude_last"), [(0.9, 0), (0.59, 0), (1.0, 0), (1.0, 2)])
def test_step_frequencies_follow_the_discount(gamma: float, exclude_last: int) -> None:
    weights = step_weights(range(10 - exclude_last), gamma)
    batch = plan(random_rewards(4, 3), weights=weights, tuples=1000, step_draws=3)
    observed = np.bincount(batch.steps.flatten().numpy(), minlength=10)
    assert observed[len(weights) :].sum() == 0
    assert chisquare(observed[: len(weights)], weights.numpy() * observed.sum()).pvalue > 1e-3


@pytest.mark.parametrize("choice", ["random", "best_worst"])
def test_the_generator_alone_decides(choice: str) -> None:
    first, again, other = (plan(random_rewards(6, 5), tuple_choice=choice, seed=s) for s in (7, 7, 8))
    assert_same(first, again)
    assert not torch.equal(first.steps, other.steps)
    assert not torch.equal(first.tie_noise, other.tie_noise)


def test_each_gradient_step_has_its_own_generator() -> None:
    draws = [torch.rand(4, generator=step_generator(seed, step)) for seed, step in ((1, 0), (1, 1), (2, 0), (1, 0))]
    assert torch.equal(draws[0], draws[3])
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
