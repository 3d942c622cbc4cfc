"""Which trajectories are kept, and in which order a loss sees them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raydense.core.ranking import rank_positions, reward_order


@pytest.mark.parametrize(
    ("rolled_out", "keep", "positions"),
    [(12, 5, [0, 2, 5, 8, 11]), (5, 5, [0, 1, 2, 3, 4]), (9, 2, [0, 8]), (2, 2, [0, 1]), (4, 3, [0, 1, 3])],
)
def test_positions_of_known_cases(rolled_out: int, keep: int, positions: list[int]) -> None:
    assert rank_positions(rolled_out, keep) == positions


@given(st.integers(2, 200).flatmap(lambda r: st.tuples(st.just(r), st.integers(2, r))))
def test_positions_are_the_floor_of_an_even_spacing(sizes: tuple[int, int]) -> None:
    rolled_out, keep = sizes
    positions = rank_positions(rolled_out, keep)
    # np.linspace's own rounding can land just below a whole number, which floor would turn into one less
    expected = np.floor(np.linspace(0, rolled_out - 1, keep) + 1e-9).astype(int).tolist()
    assert positions == expected
    assert positions == sorted(set(positions))
    assert (positions[0], positions[-1]) == (0, rolled_out - 1)


def test_best_comes_first_and_ties_follow_the_noise() -> None:
    rewards = torch.tensor([[1.0, 3.0, 1.0, 2.0], [5.0, 5.0, 5.0, 5.0]])
    tie_noise = torch.tensor([[0.2, 0.1, 0.9, 0.5], [0.3, 0.9, 0.1, 0.5]])
    assert reward_order(rewards, tie_noise).tolist() == [[1, 3, 2, 0], [1, 3, 0, 2]]


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.floats(0, 1, width=32)), min_size=2, max_size=8, unique_by=lambda p: p[1])
)
def test_order_is_lexicographic_in_reward_then_noise(pairs: list[tuple[int, float]]) -> None:
    rewards = torch.tensor([[float(r) for r, _ in pairs]])
    noise = torch.tensor([[n for _, n in pairs]])
    expected = sorted(range(len(pairs)), key=lambda i: pairs[i], reverse=True)
    assert reward_order(rewards, noise)[0].tolist() == expected
