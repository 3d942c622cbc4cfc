"""Time left follows from the stages that were seen."""

from __future__ import annotations

import pytest

from raydense.training.time_left import TimeLeft


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_it_is_known_once_a_stage_trains_and_counts_the_judging() -> None:
    clock = Clock()
    left = TimeLeft(stages=3, clock=clock)
    assert left.seconds(0, 0.0) is None
    left.judged(7.0)
    left.stage_started()
    clock.now += 20
    assert left.seconds(0, 0.0) is None  # nothing is known of training
    left.stage_sampled()
    clock.now += 5
    assert left.seconds(0, 0.5) == pytest.approx(5 + 2 * (20 + 10) + 7)
    clock.now += 5
    left.stage_finished()
    left.stage_started()
    clock.now += 10
    assert left.seconds(1, 0.0) == pytest.approx(20 + 30 + 7)
    clock.now += 40  # a slow one: not less than nothing
    assert left.seconds(1, 0.0) == pytest.approx(0 + 30 + 7)
    left.stage_finished()
    assert left.seconds(2, 0.0) == pytest.approx((30 + 50) / 2 + 7)


def test_a_stage_that_starts_while_the_one_before_trains_counts_from_its_end() -> None:
    clock = Clock()
    left = TimeLeft(stages=2, clock=clock)
    left.stage_started()
    clock.now += 10
    left.stage_sampled()
    left.stage_started()
    clock.now += 10
    left.stage_finished()
    assert left.seconds(1, 0.0) == pytest.approx(20)
