"""Rows of the network: what is planned, and what a run's metrics add up to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from raydense.config import Config
from raydense.planning.compute import NetworkRows, computed_rows, planned_rows
from raydense.planning.dry_run import count_transitions

ROWS: list[dict[str, Any]] = [
    {"kind": "stage", "replay/groups": 5},
    {"kind": "step", "network_rows": {"forward": 7, "trained": 20}},
    {"kind": "step", "network_rows": {"forward": 0, "trained": 18}, "skipped": 1.0},  # its work was done
    {"kind": "evaluation"},
    {"kind": "stage", "replay/groups": 4},
    {"kind": "step", "network_rows": {"forward": 2, "trained": 20}},
]


def test_a_run_is_the_sum_of_its_rows(small_config: Callable[..., Config]) -> None:
    config = small_config(evaluate={"steps": 3})  # R = 4, T = 4
    assert computed_rows(config, 2, ROWS, judged=10) == NetworkRows(9 * 4 * 4 * 2, 9, 58, 10 * 3 * 2)
    assert computed_rows(config, 1, ROWS, judged=10).sampler == 9 * 4 * 4
    assert computed_rows(config, 2, ROWS, judged=0).as_dict() == {
        "sampler": {"forward": 288},
        "learner": {"forward": 9, "forward_with_gradient": 58, "backward": 58},
        "judging": {"forward": 0},
    }


def test_what_earlier_code_trained_is_not_guessed(small_config: Callable[..., Config]) -> None:
    rows = computed_rows(small_config(), 2, [*ROWS, {"kind": "step"}], judged=0)
    assert (rows.sampler, rows.learner_forward, rows.learner_trained) == (288, None, None)


@pytest.mark.parametrize(
    ("train", "forward", "halves"),
    [
        ({}, 1, 2),
        ({"reg_to_pi_init": False, "reg_to_pi_old": True}, 0, 2),
        ({"objective": "policy_gradient"}, 0, 2),
        ({"objective": "policy_gradient", "kl": 0.1}, 1, 2),
        ({"objective": "diffusion_dpo"}, 1, 1),
    ],
)
def test_the_plan_is_the_most_there_can_be(
    train: dict[str, Any], forward: int, halves: int, small_config: Callable[..., Config]
) -> None:
    config = small_config(train=train, sampler={"exact": True})
    transitions = count_transitions(config)
    assert transitions == 2 * 3 * 4 * 2 * 2  # stages, steps, groups, pairs, draws
    planned = planned_rows(config, 2, images=40, transitions=transitions, judged=6)
    assert planned == NetworkRows(40 * 4 * 2, forward * halves * 96, halves * 96, 6 * 4 * 2)
