"""What a stage says in numbers, against the definitions."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from raydense.core.types import GroupMeta
from raydense.training.stage_metrics import judgement_values, stage_values


def groups(count: int, version: int = 0) -> list[GroupMeta]:
    draws = np.random.default_rng(0).normal(size=(count, 4))
    return [
        GroupMeta(
            stage=2,
            index=i,
            prompt="a cat",
            rewards=tuple(row),
            monitors={"watched": tuple(-row)},
            nbytes=100,
            weights_version=version,
            weights_checksum="",
        )
        for i, row in enumerate(draws)
    ]


def test_a_mean_has_students_interval_over_the_groups() -> None:
    given = groups(6)
    values, ends = stage_values(2, given, 10)
    by_group = np.array([group.rewards for group in given]).mean(axis=1)
    low, high = stats.t.interval(0.95, 5, by_group.mean(), by_group.std(ddof=1) / np.sqrt(6))
    assert values["reward/mean"] == pytest.approx(by_group.mean())
    assert ends["reward/mean"] == pytest.approx([low, high])
    assert values["reward/monitor/watched"] == -values["reward/mean"]
    assert values["reward/std_within"] == pytest.approx(np.mean([np.std(group.rewards) for group in given]))
    assert (values["replay/groups"], values["replay/bytes"]) == (6, 600)


def test_groups_of_equal_rewards_state_nothing() -> None:
    one, *others = groups(4)
    tied = replace(one, rewards=(0.5,) * 4)
    assert stage_values(2, [tied, *others], 10)[0]["reward/tied_groups"] == 0.25
    assert stage_values(2, others, 10)[0]["reward/tied_groups"] == 0.0


def test_a_monitor_that_failed_is_left_out_of_its_mean_alone() -> None:
    first, *others = groups(4)
    failed = replace(first, monitors={"watched": (math.nan,) * 4})
    values, ends = stage_values(2, [failed, *others], 10)
    assert values["reward/monitor/watched"] == pytest.approx(-np.mean([g.rewards for g in others]))
    assert len(ends["reward/monitor/watched"]) == 2
    assert values["reward/mean"] == pytest.approx(np.mean([g.rewards for g in (first, *others)]))
    alone, ends = stage_values(2, [failed], 10)
    assert "reward/monitor/watched" not in alone.keys() | ends.keys()


@pytest.mark.parametrize(("version", "staleness"), [(20, 0), (10, 1)])
def test_staleness_counts_stages(version: int, staleness: int) -> None:
    values, _ = stage_values(2, groups(3, version), steps_a_stage=10)
    assert (values["policy/version"], values["policy/staleness"]) == (version, staleness)


def test_an_evaluation_names_set_and_judge() -> None:
    values, ends = judgement_values({"train": {"clip": np.array([[1.0, 3.0]], np.float32)}})
    assert values == {"evaluate/train/clip": 2.0}
    assert len(ends["evaluate/train/clip"]) == 2


def test_an_evaluation_without_a_score_has_no_figure() -> None:
    scores = np.array([[1.0, 3.0], [math.nan, 5.0], [3.0, 5.0]], np.float32)
    values, _ = judgement_values({"train": {"some": scores, "none": np.full((3, 2), np.nan, np.float32)}})
    assert values == {"evaluate/train/some": 3.0}
