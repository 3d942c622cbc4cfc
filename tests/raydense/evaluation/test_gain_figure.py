"""The figure of gains over compute, from written runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import pytest
from written_runs import write_run

from raydense.config import Config, load_config
from raydense.core.statistics import mean_interval
from raydense.evaluation.gain_figure import _line, _read, band, draw_gains

GAINS = {10: 0.01, 20: 0.03, 40: 0.05}


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(overrides=["stage.count=2", "stage.steps=20"])


def write(root: Path, seeds: int, gains: Mapping[int, float] = GAINS, rows: int = 0) -> list[Path]:
    runs = [root / str(seed) for seed in range(seeds)]
    for seed, run in enumerate(runs):
        judged = {step: {"unseen": gain * (1 + 0.1 * seed)} for step, gain in gains.items()}
        counts = {"sampler": {"forward": rows}, "learner": {"backward": rows // 4}, "judging": {"forward": 7}}
        write_run(run, {"unseen": 0.05}, judged=judged, rows=counts if rows else None)
    return runs


def test_a_gain_is_what_was_added_to_the_base_models_score(config: Config, tmp_path: Path) -> None:
    (run,) = write(tmp_path, 1)
    assert _read(run, config).gains == {("clip", "unseen"): pytest.approx({0: 0.0, **GAINS})}


def test_the_band_is_students_interval_over_the_seeds_that_were_all_judged() -> None:
    curves = [{0: 0.0, 10: 1.0, 20: 5.0}, {0: 0.0, 10: 3.0}, {0: 0.0, 10: 2.0, 20: 4.0}]
    assert band(curves) == {0: mean_interval([0.0] * 3), 10: mean_interval([1.0, 3.0, 2.0])}


def test_seeds_whose_batches_were_computed_in_fewer_rows_are_one_line(config: Config, tmp_path: Path) -> None:
    """A batch that draws a transition twice computes it once, so that no two seeds have the same compute."""
    runs = [_read(write(tmp_path / str(rows), 1, rows=rows)[0], config) for rows in (800, 1000, 1200)]
    line = _line(runs, ("clip", "unseen"), counted=True)
    sampled, learned = 1000, 250  # means over the seeds, of two stages and of forty steps
    at = [0, sampled / 2 + learned / 4, sampled / 2 + learned / 2, sampled + learned]
    assert {rows: gain.mean for rows, gain in line.items()} == pytest.approx(
        dict(zip(at, [0, *GAINS.values()], strict=True))
    )


def test_a_seed_that_was_not_judged_on_the_way_takes_no_line_away(config: Config, tmp_path: Path) -> None:
    runs = [*write(tmp_path / "judged", 2, rows=800), *write(tmp_path / "not", 1, {40: 0.05}, rows=800)]
    assert draw_gains(tmp_path / "gain.svg", {"a": [(run, config) for run in runs]})
    assert "<!-- a (2 seeds) -->" in (tmp_path / "gain.svg").read_text()


def test_the_same_runs_give_the_same_bytes(config: Config, tmp_path: Path) -> None:
    arms = {name: [(run, config) for run in write(tmp_path / name, 3, rows=800)] for name in ("$a$", "b")}
    files = [tmp_path / "one.svg", tmp_path / "two.svg"]
    assert [draw_gains(file, arms) for file in files] == [True, True]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert ElementTree.parse(files[0]).getroot().tag.endswith("svg")
    text = files[0].read_text()
    for shown in ("$a$ (3 seeds)", "b (3 seeds)", "rows of the network, forward and backward", "clip, unseen prompts"):
        assert f"<!-- {shown}" in text  # matplotlib notes what its outlines say


def test_compute_that_one_run_did_not_count_is_shown_of_none(config: Config, tmp_path: Path) -> None:
    arms = {"a": [(r, config) for r in write(tmp_path / "a", 2, rows=800)],
            "b": [(r, config) for r in write(tmp_path / "b", 1)]}  # fmt: skip
    assert draw_gains(tmp_path / "gain.svg", arms)
    text = (tmp_path / "gain.svg").read_text()
    assert "<!-- gradient steps -->" in text
    assert "<!-- b (1 seed) -->" in text


@pytest.mark.parametrize("gains", [{}, {40: 0.05}])
def test_without_judgements_on_the_way_there_is_nothing_to_draw(
    config: Config, tmp_path: Path, gains: Mapping[int, float]
) -> None:
    arms = {"a": [(run, config) for run in write(tmp_path, 2, gains)]}
    assert not draw_gains(tmp_path / "gain.svg", arms)
    assert not (tmp_path / "gain.svg").exists()
