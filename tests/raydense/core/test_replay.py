"""The replay buffer: one stage's handles, drawn uniformly with replacement."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from raydense.core.replay import ReplayBuffer


class Group:
    """Something whose end can be seen."""


def test_it_holds_what_it_was_last_given() -> None:
    buffer: ReplayBuffer[str] = ReplayBuffer(3)
    buffer.replace(["a", "b", "c"])
    buffer.replace(["d", "e"])
    assert len(buffer) == 2
    assert [buffer[0], buffer[1]] == ["d", "e"]


def test_replacing_frees_what_only_the_buffer_kept_alive() -> None:
    buffer: ReplayBuffer[Group] = ReplayBuffer(1)
    group = Group()
    seen = weakref.ref(group)
    buffer.replace([group])
    del group
    gc.collect()
    assert seen() is not None
    buffer.replace([Group()])
    gc.collect()
    assert seen() is None


def test_draws_are_uniform_with_replacement_and_seeded() -> None:
    buffer: ReplayBuffer[int] = ReplayBuffer(6)
    buffer.replace(range(6))
    drawn = buffer.draw(6000, torch.Generator().manual_seed(0))
    assert chisquare(np.bincount(drawn.numpy(), minlength=6)).pvalue > 1e-3
    assert torch.equal(buffer.draw(6000, torch.Generator().manual_seed(0)), drawn)
    assert len(buffer.draw(20, torch.Generator())) == 20  # more than it holds


def test_what_does_not_fit_is_refused() -> None:
    buffer: ReplayBuffer[str] = ReplayBuffer(1)
    with pytest.raises(ValueError, match="empty"):
        buffer.draw(1, torch.Generator())
    with pytest.raises(ValueError, match="2 groups exceed the replay buffer's capacity of 1"):
        buffer.replace(["a", "b"])
    with pytest.raises(ValueError, match="capacity=0"):
        ReplayBuffer(0)
