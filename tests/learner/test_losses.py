"""The loss against a slow NumPy version, and the properties that METHOD §4 asks of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise, permutations
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from learner.losses import (
    balancing_weights,
    clipped_log_ratio,
    have_ties,
    loss_scale,
    marginal_plackett_luce_loss,
    pair_accuracy,
    plackett_luce_loss,
    step_weights,
    trajectory_logits,
)


def slow_list_mle(logits: np.ndarray, rewards: np.ndarray, tie_noise: np.ndarray) -> float:
    """Σ_i [logsumexp(z_(i), …, z_(n)) − z_(i)] of one tuple, best first, in float64."""
    order = sorted(range(len(logits)), key=lambda k: (rewards[k], tie_noise[k]), reverse=True)
    z = [float(logits[k]) for k in order]
    return sum(math.log(sum(math.exp(later) for later in z[i:])) - z[i] for i in range(len(z)))


def finite(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, width=32)


@st.composite
def tuples(draw: st.DrawFn, min_n: int = 2, max_n: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(logits, rewards, tie noise) of one tuple; rewards from few values, so that ties are common."""
    n = draw(st.integers(min_n, max_n))
    logits = draw(arrays(np.float32, n, elements=finite(-5, 5)))
    rewards = draw(arrays(np.float32, n, elements=st.sampled_from([-1.0, 0.0, 0.5, 2.0])))
    noise = np.array(draw(st.permutations(range(n))), dtype=np.float32) / n
    return logits, rewards, noise


def loss_of(logits: np.ndarray, rewards: np.ndarray, noise: np.ndarray) -> float:
    rows = (torch.tensor(np.asarray(a, dtype=np.float64))[None] for a in (logits, rewards, noise))
    return float(plackett_luce_loss(*rows)[0])


@given(tuples())
def test_list_mle_matches_the_slow_reference_with_ties(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    assert loss_of(*case) == pytest.approx(slow_list_mle(*case), rel=1e-9, abs=1e-9)


@given(finite(-20, 20), finite(-20, 20))
def test_a_pair_costs_softplus_of_the_gap(win: float, lose: float) -> None:
    gap = lose - win
    expected = max(gap, 0) + math.log1p(math.exp(-abs(gap)))
    assert loss_of([win, lose], [1.0, 0.0], [0.0, 1.0]) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(tuples(), st.randoms(use_true_random=False))
def test_the_order_in_which_trajectories_are_given_does_not_matter(
    case: tuple[np.ndarray, np.ndarray, np.ndarray], random: Random
) -> None:
    shuffled = list(range(len(case[0])))
    random.shuffle(shuffled)
    assert loss_of(*(a[shuffled] for a in case)) == pytest.approx(loss_of(*case), rel=1e-12)


@given(tuples())
def test_only_the_order_of_the_rewards_enters(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    logits, rewards, noise = case
    assert loss_of(logits, np.exp(3 * rewards.astype(np.float64)) - 7, noise) == loss_of(logits, rewards, noise)


def test_a_tie_is_decided_by_its_noise() -> None:
    logits, rewards = torch.tensor([[2.0, -1.0]]), torch.tensor([[0.5, 0.5]])
    first = plackett_luce_loss(logits, rewards, torch.tensor([[0.9, 0.1]]))
    second = plackett_luce_loss(logits, rewards, torch.tensor([[0.1, 0.9]]))
    assert float(first) == pytest.approx(math.log1p(math.exp(-3)), rel=1e-6)
    assert float(second) == pytest.approx(math.log1p(math.exp(3)), rel=1e-6)


def test_one_loss_a_tuple() -> None:
    draws = np.random.default_rng(0)
    logits, rewards, noise = draws.standard_normal((3, 4, 3))
    losses = plackett_luce_loss(*(torch.tensor(a) for a in (logits, rewards, noise)))
    np.testing.assert_allclose(losses, [slow_list_mle(*row) for row in zip(logits, rewards, noise, strict=True)])


def test_equal_logits_cost_log_n_factorial_and_large_logits_stay_finite() -> None:
    assert loss_of([3.0] * 5, range(5), range(5)) == pytest.approx(math.log(math.factorial(5)))
    assert loss_of([1e4, -1e4], [0.0, 1.0], [0.0, 1.0]) == pytest.approx(2e4)


@settings(max_examples=25)
@given(tuples())
def test_the_gradient_matches_finite_differences(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    logits, rewards, noise = (torch.tensor(a, dtype=torch.float64)[None] for a in case)
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(plackett_luce_loss(logits, rewards, noise).sum(), logits)
    for k in range(logits.shape[1]):
        bump = np.zeros(logits.shape[1])
        bump[k] = 1e-5
        slope = (slow_list_mle(case[0] + bump, *case[1:]) - slow_list_mle(case[0] - bump, *case[1:])) / 2e-5
        assert float(gradient[0, k]) == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize(
    ("logits", "rewards", "noise", "said"),
    [
        ((2, 3), (2, 2), (2, 3), "shapes differ"),
        ((2, 3), (2, 3), (1, 3), "shapes differ"),
        ((2, 1), (2, 1), (2, 1), "n >= 2"),
        ((3,), (3,), (3,), "n >= 2"),
    ],
)
def test_shapes_that_are_no_tuples_are_refused(
    logits: tuple[int, ...], rewards: tuple[int, ...], noise: tuple[int, ...], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        plackett_luce_loss(torch.zeros(logits), torch.zeros(rewards), torch.zeros(noise))
    if rewards != logits or "n >= 2" in said:
        with pytest.raises(ValueError, match=said):
            marginal_plackett_luce_loss(torch.zeros(logits), torch.zeros(rewards))


# -- ties -------------------------------------------------------------------------------------------------


def slow_marginal(logits: np.ndarray, rewards: np.ndarray) -> float:
    """−log of the summed probabilities of all permutations that put no worse trajectory before a better one."""
    total = 0.0
    for order in permutations(range(len(logits))):
        if all(rewards[a] >= rewards[b] for a, b in pairwise(order)):
            weights = [math.exp(float(logits[k])) for k in order]
            total += math.prod(weight / sum(weights[i:]) for i, weight in enumerate(weights))
    return -math.log(total)


def marginal_of(logits: np.ndarray, rewards: np.ndarray) -> float:
    rows = (torch.tensor(np.asarray(a, dtype=np.float64))[None] for a in (logits, rewards))
    return float(marginal_plackett_luce_loss(*rows)[0])


def gradient_of(loss: Callable[[torch.Tensor], torch.Tensor], logits: np.ndarray) -> np.ndarray:
    leaf = torch.tensor(np.asarray(logits, dtype=np.float64))[None].requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf).sum(), leaf)
    return gradient[0].numpy()


@settings(deadline=None)  # of the slow version
@given(tuples())
def test_ties_are_summed_over_their_orders(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    logits, rewards, _ = case
    assert marginal_of(logits, rewards) == pytest.approx(slow_marginal(logits, rewards), rel=1e-9, abs=1e-9)


@given(tuples(), st.randoms(use_true_random=False))
def test_nothing_but_the_partial_order_enters(case: tuple[np.ndarray, np.ndarray, np.ndarray], random: Random) -> None:
    logits, rewards, _ = case
    shuffled = list(range(len(logits)))
    random.shuffle(shuffled)
    expected = pytest.approx(marginal_of(logits, rewards), rel=1e-12, abs=1e-12)
    assert marginal_of(logits[shuffled], rewards[shuffled]) == expected
    assert marginal_of(logits + 3.0, np.exp(rewards)) == pytest.approx(marginal_of(logits, rewards), abs=1e-5)


@given(tuples())
def test_without_ties_it_is_the_loss_of_the_order(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    logits, _, noise = case
    assert marginal_of(logits, noise) == pytest.approx(loss_of(logits, noise, noise), rel=1e-9, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(tuples(max_n=4))
def test_its_gradient_matches_finite_differences(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    logits, rewards, _ = case
    gradient = gradient_of(lambda z: marginal_plackett_luce_loss(z, torch.tensor(rewards)[None]), logits)
    for k in range(len(logits)):
        bump = np.zeros(len(logits))
        bump[k] = 1e-5
        slope = (slow_marginal(logits + bump, rewards) - slow_marginal(logits - bump, rewards)) / 2e-5
        assert gradient[k] == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("n", [2, 3, 5])
@given(data=st.data())
def test_all_equal_rewards_cost_nothing_and_pull_at_nothing_to_the_last_bit(n: int, data: st.DataObject) -> None:
    logits = torch.tensor(data.draw(arrays(np.float32, n, elements=finite(-50, 50))))[None].requires_grad_()
    loss = marginal_plackett_luce_loss(logits, torch.full((1, n), 0.25))
    loss.sum().backward()
    assert loss.tolist() == [0.0]
    assert logits.grad is not None
    assert not logits.grad.any()


def test_an_average_over_the_orders_would_pull_at_a_tied_pair() -> None:
    logits, tie = np.array([0.5, -0.5]), torch.zeros(1, 2, dtype=torch.float64)

    def average(z: torch.Tensor) -> torch.Tensor:
        noises = torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]]])
        return (plackett_luce_loss(z, tie, noises[0]) + plackett_luce_loss(z, tie, noises[1])) / 2

    np.testing.assert_allclose(gradient_of(average, logits), [0.2311, -0.2311], atol=1e-4)
    assert gradient_of(lambda z: marginal_plackett_luce_loss(z, tie), logits).tolist() == [0.0, 0.0]


def test_logits_of_any_size_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0, 1e4]], requires_grad=True)
    loss = marginal_plackett_luce_loss(logits, torch.tensor([[0.0, 1.0, 1.0, 0.0]]))
    loss.sum().backward()
    assert loss.item() == pytest.approx(3e4 + math.log(2))  # two orders of 3e4 + 2 ln 2 each
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_which_tuples_have_ties() -> None:
    rewards = torch.tensor([[1.0, 2.0, 3.0], [3.0, 1.0, 3.0], [0.0, 0.0, 0.0], [-0.0, 0.0, 1.0]])
    assert have_ties(rewards).tolist() == [False, True, True, True]


# -- step weights -----------------------------------------------------------------------------------------


def test_step_weights_are_the_normalised_discounts() -> None:
    np.testing.assert_allclose(step_weights(range(3), 0.5), np.array([4, 2, 1]) / 7)
    assert step_weights(range(3), 0.5).dtype == torch.float64


def test_gamma_one_is_uniform() -> None:
    np.testing.assert_allclose(step_weights(range(10), 1.0), np.full(10, 0.1))


def test_the_last_steps_can_be_left_out() -> None:
    np.testing.assert_allclose(step_weights(range(2, 5), 0.9)[2:], step_weights(range(3), 0.9))
    assert step_weights(range(2, 5), 0.9)[:2].tolist() == [0, 0]


@given(st.integers(1, 100), st.floats(0.05, 1.0), st.integers(0, 99))
def test_step_weights_sum_to_one_and_fall_by_gamma(num_steps: int, gamma: float, exclude_last: int) -> None:
    weights = step_weights(range(max(1, num_steps - exclude_last)), gamma).numpy()
    assert weights.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(weights[1:], gamma * weights[:-1], rtol=1e-9)


# -- ratios -----------------------------------------------------------------------------------------------


def test_the_clip_bounds_the_ratio_and_stops_its_gradient() -> None:
    log_prob = torch.tensor([-1.0, -0.05, 0.0, 0.03, 0.4], requires_grad=True)
    ratio = clipped_log_ratio(log_prob, torch.zeros(5), clip=0.1)
    assert ratio.tolist() == pytest.approx([-0.1, -0.05, 0.0, 0.03, 0.1])
    ratio.sum().backward()
    assert log_prob.grad is not None
    assert log_prob.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


def test_logits_are_c_times_the_mean_over_the_draws() -> None:
    ratios = torch.tensor([[[1.0, 3.0], [0.0, -1.0]]])
    assert trajectory_logits(ratios, 10.0).tolist() == [[20.0, -5.0]]


def test_pair_accuracy_counts_agreement_and_ignores_ties() -> None:
    rewards = torch.tensor([[3.0, 2.0, 1.0]])
    assert float(pair_accuracy(torch.tensor([[5.0, 1.0, 2.0]]), rewards)) == pytest.approx(2 / 3)
    assert float(pair_accuracy(torch.zeros(1, 3), rewards)) == 0.5
    assert float(pair_accuracy(torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 1.0]]))) == 0.5


@pytest.mark.parametrize(
    ("elements", "tuples", "c", "expected"),
    [(4 * 64 * 64, 32, 12.5, 2.0**15), (1024, 4, 10.0, 2.0**9), (1, 1, 8.0, 0.125)],
)
def test_a_scaled_losss_gradient_at_the_networks_output_is_about_one(
    elements: int, tuples: int, c: float, expected: float
) -> None:
    assert loss_scale(elements, tuples, c) == expected


def test_balancing_weights_are_the_inverse_squares_with_a_mean_of_one() -> None:
    drawn = step_weights(range(1, 4), 0.5)
    weights = balancing_weights(torch.tensor([2.0, 1.0, 0.5, 4.0, np.inf]), drawn)
    assert weights[[0, 4]].tolist() == [0, 0]
    np.testing.assert_allclose(weights[1:4] / weights[1], [1, 4, 1 / 16], rtol=1e-6)
    assert float((drawn * weights[:4]).sum()) == pytest.approx(1, rel=1e-6)


def test_a_clip_may_differ_from_draw_to_draw() -> None:
    ratio = torch.tensor([0.5, -0.5, 0.05], requires_grad=True)
    found = clipped_log_ratio(ratio, torch.zeros(3), torch.tensor([0.1, np.inf, 0.1]))
    torch.testing.assert_close(found, torch.tensor([0.1, -0.5, 0.05]))
    found.sum().backward()
    assert ratio.grad is not None
    assert ratio.grad.tolist() == [0, 1, 1]
