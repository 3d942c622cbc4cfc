"""Rows of the network that runs counted: read, compared, and along a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from written_runs import write_run

from raydense.config import load_config
from raydense.evaluation.compute import mean_counts, read_counts, rows_until, unequal


def test_what_a_run_counted_but_for_its_judging(tmp_path: Path) -> None:
    learner = {"forward": 3, "forward_with_gradient": 4, "backward": 4}
    write_run(
        tmp_path, {"unseen": 0.1}, rows={"sampler": {"forward": 10}, "learner": learner, "judging": {"forward": 9}}
    )
    assert read_counts(tmp_path) == {
        "sampler forward": 10,
        "learner forward": 3,
        "learner forward with gradient": 4,
        "learner backward": 4,
    }


@pytest.mark.parametrize("rows", [None, {"sampler": {"forward": 10}, "learner": {"forward": None, "backward": 4}}])
def test_rows_that_nobody_counted_are_not_known(tmp_path: Path, rows: dict[str, dict[str, int | None]] | None) -> None:
    write_run(tmp_path, {"unseen": 0.1}, rows=rows)
    assert read_counts(tmp_path) == {}
    assert read_counts(tmp_path / "absent") == {}


def test_an_arm_has_the_mean_of_its_seeds() -> None:
    assert mean_counts([{"a": 1, "b": 4}, {"a": 3, "b": 4}]) == {"a": 2, "b": 4}
    assert mean_counts([{"a": 1}, {}]) == {}


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ({"a": 100}, {"a": 100}, None),
        ({"a": 101}, {"a": 100}, None),
        ({"a": 102}, {"a": 100}, "a 102 against 100"),
        ({"a": 100}, {"a": 102}, "a 100 against 102"),
        ({"a": 5, "b": 3000}, {"a": 5, "b": 1000}, "b 3,000 against 1,000"),
        ({"a": 5, "b": 1}, {"a": 5}, "b 1 against 0"),
        ({}, {"a": 100}, None),
        ({"a": 100}, {}, None),
    ],
)
def test_arms_of_unequal_compute_are_told(ours: dict[str, float], theirs: dict[str, float], said: str | None) -> None:
    assert unequal(ours, theirs) == ([f"not at equal compute: rows of the network: {said}"] if said else [])


def test_rows_grow_with_stages_for_the_sampler_and_with_steps_for_the_learner() -> None:
    config = load_config(overrides=["stage.count=2", "stage.steps=20"])
    counts = {"sampler forward": 800, "learner backward": 200}
    found = [rows_until(step, counts, config) for step in (0, 10, 20, 21, 40)]
    assert found == pytest.approx([0, 450, 500, 905, 1000])
