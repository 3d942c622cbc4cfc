"""The rivals' losses against slow versions of their published form, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from learner.rivals import (
    clipped_surrogate,
    diffusion_dpo_loss,
    diffusion_dpo_margins,
    gaussian_kl,
    group_advantages,
)


def finite(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, width=32)


# -- policy gradient ------------------------------------------------------------------------------------------


def slow_advantages(rewards: list[float]) -> list[float]:
    """Flow-GRPO's statistics of a prompt's rewards, then DDPO's clip."""
    mean = sum(rewards) / len(rewards)
    std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / len(rewards))
    return [min(max((r - mean) / (std + 1e-4), -5.0), 5.0) for r in rewards]


def slow_surrogate(ratio: float, advantage: float, clip: float) -> float:
    """DDPO's: the larger of the two losses."""
    return max(-advantage * ratio, -advantage * min(max(ratio, 1 - clip), 1 + clip))


@given(arrays(np.float32, st.integers(2, 40), elements=finite(-3, 3)))
def test_advantages_match_the_slow_reference(rewards: np.ndarray) -> None:
    np.testing.assert_allclose(group_advantages(rewards), slow_advantages(rewards.tolist()), rtol=1e-5, atol=1e-6)


def test_equal_rewards_have_no_advantage_and_a_lonely_one_at_most_5() -> None:
    assert group_advantages(np.full(6, 0.3, np.float32)).tolist() == [0.0] * 6
    lonely = np.zeros(40, np.float32)
    lonely[7] = 1.0  # √39 = 6.2 standard deviations away
    assert group_advantages(lonely)[7] == 5.0


def test_an_advantage_does_not_hang_on_the_rewards_scale() -> None:
    rewards = np.array([0.1, 0.5, 0.2, 0.9], np.float32)
    np.testing.assert_allclose(group_advantages(100 * rewards + 3), group_advantages(rewards), rtol=1e-3)


@given(finite(0.25, 4), finite(-5, 5), finite(0.015625, 0.5))
def test_the_surrogate_matches_the_slow_reference(ratio: float, advantage: float, clip: float) -> None:
    found = clipped_surrogate(torch.tensor([[[ratio]]]).double(), torch.tensor([[advantage]]).double(), clip)
    assert float(found) == pytest.approx(slow_surrogate(ratio, advantage, clip), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"),
    [
        (1.0, 2.0, -2.0),
        (1.3, 2.0, 0.0),  # better than average, and made likelier already
        (0.7, 2.0, -2.0),
        (1.3, -2.0, 2.0),
        (0.7, -2.0, 0.0),
        (1.0, 0.0, 0.0),
    ],
)
def test_only_what_goes_too_far_the_right_way_is_clipped(ratio: float, advantage: float, slope: float) -> None:
    r = torch.tensor([[[ratio]]], requires_grad=True)
    clipped_surrogate(r, torch.tensor([[advantage]]), 0.2).sum().backward()
    assert r.grad is not None
    assert float(r.grad) == slope


def test_each_draw_may_have_its_own_clip_and_an_infinite_one_clips_nothing() -> None:
    ratio, advantages = torch.tensor([[[1.5, 1.5]]]), torch.tensor([[1.0]])
    found = clipped_surrogate(ratio, advantages, torch.tensor([[[0.2, torch.inf]]]))
    assert found.flatten().tolist() == pytest.approx([-1.2, -1.5])


def test_the_divergence_is_that_of_two_gaussians_a_latent_element() -> None:
    draws = np.random.default_rng(0)
    mean, other = (torch.from_numpy(draws.standard_normal((3, 4, 2, 2))) for _ in range(2))
    sigma = torch.tensor([0.1, 0.5, 2.0]).double()[:, None, None, None]
    pairs = [torch.distributions.Normal(m, sigma.expand_as(mean)) for m in (mean, other)]
    expected = torch.distributions.kl_divergence(*pairs).mean(dim=(1, 2, 3))
    torch.testing.assert_close(gaussian_kl(mean, other, sigma), expected)


# -- Diffusion-DPO --------------------------------------------------------------------------------------------


def slow_dpo(errors: np.ndarray, initial: np.ndarray, rewards: np.ndarray, noise: np.ndarray, beta: float) -> float:
    """The published script's terms, for one pair; errors [2, S]."""
    w, lose = sorted((0, 1), key=lambda k: (rewards[k], noise[k]), reverse=True)
    losses = []
    for s in range(errors.shape[1]):
        model_diff = float(errors[w, s]) - float(errors[lose, s])
        ref_diff = float(initial[w, s]) - float(initial[lose, s])
        inside_term = -0.5 * beta * (model_diff - ref_diff)
        losses.append(max(-inside_term, 0.0) + math.log1p(math.exp(-abs(inside_term))))
    return sum(losses) / len(losses)


@given(
    arrays(np.float64, (2, 2, 3), elements=finite(0, 1)),
    arrays(np.float64, 2, elements=st.sampled_from([0.0, 0.5, 1.0])),
    st.booleans(),
    st.sampled_from([1.0, 50.0, 5000.0]),
)
def test_the_dpo_loss_matches_the_slow_reference(
    both: np.ndarray, rewards: np.ndarray, first: bool, beta: float
) -> None:
    noise = np.array([0.9, 0.1]) if first else np.array([0.1, 0.9])
    errors, initial, r, u = (torch.from_numpy(a)[None] for a in (both[0], both[1], rewards, noise))
    found = diffusion_dpo_loss(diffusion_dpo_margins(errors, initial, r, u, beta))
    assert float(found) == pytest.approx(slow_dpo(both[0], both[1], rewards, noise, beta), rel=1e-9, abs=1e-12)


def test_what_is_no_better_and_no_worse_than_the_base_model_costs_ln_2() -> None:
    errors = torch.rand(4, 2, 3, dtype=torch.float64)
    margins = diffusion_dpo_margins(errors, errors, torch.rand(4, 2), torch.rand(4, 2), 5000.0)
    assert margins.abs().max() == 0
    assert diffusion_dpo_loss(margins).tolist() == pytest.approx([math.log(2)] * 4)


def test_the_winners_error_is_pressed_down_and_the_losers_up() -> None:
    errors = torch.full((1, 2, 1), 0.4, requires_grad=True)
    margins = diffusion_dpo_margins(
        errors, torch.full((1, 2, 1), 0.4), torch.tensor([[0.0, 1.0]]), torch.rand(1, 2), 8.0
    )
    diffusion_dpo_loss(margins).sum().backward()
    assert errors.grad is not None
    assert errors.grad.flatten().tolist() == pytest.approx([-2.0, 2.0])  # β/2 · σ(0)
