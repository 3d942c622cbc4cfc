"""δ by denoising step: it clips the share that was asked for, and is part of what a learner continues from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from learner.clips import ENOUGH, RECENT, AutoClip, FixedClip
from raydense.core.types import TrajectoryGroup
from raydense.diffusion.policy import Policy

T = 6


def feed(clip: AutoClip, spread: np.ndarray, rounds: int, seed: int = 0) -> None:
    """Gradient steps that draw each denoising step equally often."""
    draws = np.random.default_rng(seed)
    for _ in range(rounds):
        steps = np.tile(np.arange(len(spread)), (2, 1))
        values = np.abs(draws.standard_normal((2, 4, len(spread)))) * spread
        clip.observe(steps, values.astype(np.float32))


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_the_share_is_clipped_at_every_step_whatever_its_spread(share: float) -> None:
    spread = 10.0 ** np.linspace(-4, -1, T)
    clip = AutoClip(T, share, floor=0.0)
    feed(clip, spread, rounds=RECENT // 8)
    fresh = np.abs(np.random.default_rng(1).standard_normal((20_000, T))) * spread
    clipped = (fresh > clip.now()).mean(axis=0)
    assert np.all(clipped[1:-1] > share / 4), clipped  # a geometric mean of neighbours on a line in logarithms
    assert np.all(clipped[1:-1] < share * 3), clipped


def test_nothing_is_clipped_before_enough_was_seen() -> None:
    clip = AutoClip(T, 0.05, floor=0.0)
    assert np.isinf(clip.now()).all()
    clip.observe(np.zeros((1, 1), np.int64), np.zeros((1, 8, 1), np.float32))  # equal weights tell nothing
    assert np.isinf(clip.now()).all()
    clip.observe(np.zeros((1, 1), np.int64), np.full((1, ENOUGH - 1, 1), 0.1, np.float32))
    assert np.isinf(clip.now()).all()
    clip.observe(np.zeros((1, 1), np.int64), np.full((1, 1, 1), 0.1, np.float32))
    np.testing.assert_allclose(clip.now(), [0.1, 0.1, *[np.inf] * (T - 2)], rtol=1e-6)  # its neighbour has it, too


def test_a_step_that_is_rarely_drawn_learns_from_its_neighbours() -> None:
    clip = AutoClip(3, 0.5, floor=0.0)
    for step, value, count in ((0, 0.01, 64), (2, 0.04, 64), (1, 0.5, 1)):
        clip.observe(np.full((1, 1), step), np.full((1, count, 1), value, np.float32))
    expected = np.exp((64 * np.log(0.01) + 64 * np.log(0.04) + np.log(0.5)) / 129)
    assert clip.now()[1] == pytest.approx(expected, rel=1e-5)


def test_it_follows_what_is_recent_and_stays_above_the_noise() -> None:
    clip = AutoClip(1, 0.05, floor=0.03)
    feed(clip, np.array([1.0]), rounds=RECENT)
    assert clip.now()[0] > 1
    feed(clip, np.array([1e-3]), rounds=RECENT // 8)
    assert clip.now()[0] == np.float32(0.03)


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_log_ratios_of_which_one_is_no_number_tell_nothing(odd: float) -> None:
    clip = AutoClip(1, 0.05, floor=0.0)
    feed(clip, np.array([1.0]), rounds=RECENT)
    before, values = clip.now(), np.ones((1, 8, 1), np.float32)
    values[0, 3] = odd
    clip.observe(np.zeros((1, 1), np.int64), values)
    assert np.array_equal(clip.now(), before)


def test_a_fixed_one_has_no_state() -> None:
    clip = FixedClip(0.1)
    clip.observe(np.zeros((1, 1), np.int64), np.ones((1, 2, 1), np.float32))
    assert (clip.now(), clip.state_dict()) == (0.1, {})


def test_a_learner_continues_with_it_to_the_same_bits(
    make_policy: Callable[..., Policy], make_groups: Callable[..., list[TrajectoryGroup]], make_learner: Any
) -> None:
    def begin() -> Any:
        policy = make_policy()
        learner = make_learner(policy, lr=3e-3, batch_groups=5, clip=AutoClip(4, 0.3, floor=0.0))
        learner.begin_stage(0, groups)
        return learner

    groups = make_groups(make_policy(), count=5, keep=4)
    whole = begin()
    told = whole.train(12)
    first = begin()
    first.train(7)
    second = begin()
    second.load_state_dict(torch.load(_saved(first.state_dict()), weights_only=False))
    assert second.train(5) == told[7:]
    assert second.weights().checksum == whole.weights().checksum
    clips = [row.by_step["clip"] for row in told]
    assert clips[0] == (None,) * 4
    assert all(value is not None for value in clips[-1])
    shares = [sum(row.by_step["clipped"]) / (5 * 2 * 2) for row in told[6:]]
    assert 0.1 < np.mean(shares) < 0.6
    assert any(row.values["log_ratio/clip_fraction"] > 0 for row in told[6:])


def test_a_step_that_is_skipped_leaves_it_as_it_was(
    make_policy: Callable[..., Policy], make_groups: Callable[..., list[TrajectoryGroup]], make_learner: Any
) -> None:
    policy = make_policy()
    groups = make_groups(policy, count=5, keep=4)
    learner = make_learner(policy, batch_groups=5, clip=AutoClip(4, 0.3, floor=0.0), to_init=False, to_old=True)
    learner.begin_stage(0, groups)
    learner.train(2)
    before = learner.state_dict()["clip"]
    learner.begin_stage(1, [replace(g, stage=1, log_probs=np.full_like(g.log_probs, np.nan)) for g in groups])
    assert learner.train(1)[0].values == {"skipped": 1.0}
    after = learner.state_dict()["clip"]
    assert before["seen"].any()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    learner.begin_stage(2, [replace(g, stage=2) for g in groups])
    assert learner.train(1)[0].values["skipped"] == 0.0


def _saved(state: Any) -> Any:
    import io

    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file
