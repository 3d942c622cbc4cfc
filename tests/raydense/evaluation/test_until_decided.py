"""Seeds are added until one comparison is decided: the same decision however the runs are scheduled or cut."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner
from written_runs import write_run

from raydense.cli import app
from raydense.config import ConfigError, load_config
from raydense.core.sequential import bounds
from raydense.core.statistics import mean_interval
from raydense.evaluation.sweep import Trial
from raydense.evaluation.sweep_table import write_results
from raydense.evaluation.until_decided import (
    Asked,
    Rule,
    decision_notes,
    looks,
    most_seeds,
    name_rule,
    run_until_decided,
)

LOW, HIGH, OTHER = ((("steps.gamma", value),) for value in ("0.8", "1", "0.5"))
RULE = Rule(HIGH, LOW, "unseen", "clip", tuple(range(201, 213)), 4)


NOISE = (1.4, -0.6, 0.3, -1.2, 0.8, -0.4, 1.1, -0.9, 0.2, 0.6, -1.3, 0.5)  # of the differences, by seed


def gain(settings: Any, seed: int, effect: float) -> float:
    """What a seed gives to both arms is large; their differences are `effect` with a spread of about 0.009."""
    own = effect + 0.01 * NOISE[(seed - 201) % len(NOISE)] if settings == HIGH else 0.0
    return 0.1 + 0.05 * math.cos(seed) + own


class Writer:
    """Writes what a run would have found, in place of training it; is cut after `most` of them, as if killed."""

    def __init__(self, effect: float, jobs: int = 1, most: int | None = None) -> None:
        self.effect, self.jobs, self.most = effect, jobs, most
        self.failed: list[Trial] = []
        self.made: list[tuple[str, int]] = []

    def run(self, trials: Sequence[Trial]) -> None:
        for trial in trials:
            if trial.finished:
                continue
            if self.most is not None and len(self.made) == self.most:
                raise KeyboardInterrupt
            write_run(trial.directory, {"unseen": gain(trial.settings, trial.seed, self.effect)})
            self.made.append((trial.settings[0][1], trial.seed))


Sweep = Callable[..., list[Trial]]


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    config = load_config()

    def trials(out: str = "out", settings: Sequence[Any] = (LOW, HIGH)) -> list[Trial]:
        root = tmp_path / out
        return [Trial(s, n, (), config, root / f"{s[0][1]},{n}") for s in settings for n in RULE.seeds]

    return trials


def decision(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "decision.json").read_text()))


# -- the looks ------------------------------------------------------------------------------------------------


def test_a_decision_is_the_first_look_whose_interval_excludes_zero(sweep: Sweep, tmp_path: Path) -> None:
    out, limits = tmp_path / "out", bounds(4, 12)
    writer = Writer(effect=0.012)
    run_until_decided(out, RULE, sweep(), writer)
    differences = [gain(HIGH, seed, 0.012) - gain(LOW, seed, 0.012) for seed in RULE.seeds]
    found = decision(out)
    assert found["decided"] == "higher" and found["ended"]
    last = found["looks"][-1]["seeds"]
    assert 4 < last < 12
    for count, row in zip(range(4, last + 1), found["looks"], strict=True):
        expected = mean_interval(differences[:count], limits[count - 4])
        assert (row["seeds"], row["low"], row["high"]) == (count, *map(pytest.approx, (expected.low, expected.high)))
        assert (row["low"] > 0) == (count == last)
    assert sorted(writer.made) == sorted((s, n) for s in ("0.8", "1") for n in RULE.seeds[:last])


def test_a_lower_arm_is_decided_too(sweep: Sweep, tmp_path: Path) -> None:
    run_until_decided(tmp_path / "out", RULE, sweep(), Writer(effect=-0.02))
    assert decision(tmp_path / "out")["decided"] == "lower"
    assert decision_notes(tmp_path / "out")[0].startswith("decided: gamma=1 is lower than gamma=0.8: difference -0.0")


def test_without_a_difference_it_ends_when_no_seed_is_left(sweep: Sweep, tmp_path: Path) -> None:
    writer = Writer(effect=0)
    run_until_decided(tmp_path / "out", RULE, sweep(), writer)
    found = decision(tmp_path / "out")
    assert (found["decided"], found["ended"], found["looks"][-1]["seeds"]) == (None, True, 12)
    assert len(writer.made) == 24
    assert decision_notes(tmp_path / "out")[0].startswith("not decided, and no seed is left: gamma=1 against gamma=0.8")


def test_looks_end_where_a_seed_is_missing() -> None:
    limits = bounds(4, 12)
    differences = {seed: 0.01 * (-1) ** seed for seed in RULE.seeds if seed != 207}
    assert [look.seeds for look in looks(RULE, limits, differences)] == [4, 5, 6]
    assert looks(RULE, limits, {201: 1.0, 202: 1.0}) == []


@pytest.mark.parametrize("jobs", [2, 3, 4, 16])
def test_what_runs_side_by_side_decides_nothing(sweep: Sweep, tmp_path: Path, jobs: int) -> None:
    run_until_decided(tmp_path / "one", RULE, sweep("one"), Writer(effect=0.012))
    run_until_decided(tmp_path / "many", RULE, sweep("many"), Writer(effect=0.012, jobs=jobs))
    assert decision(tmp_path / "many") == decision(tmp_path / "one")


@pytest.mark.parametrize("most", [0, 1, 5, 8, 9, 11])
def test_a_sweep_that_is_cut_and_goes_on_decides_the_same(sweep: Sweep, tmp_path: Path, most: int) -> None:
    run_until_decided(tmp_path / "whole", RULE, sweep("whole"), Writer(effect=0.012))
    cut = Writer(effect=0.012, most=most)
    with pytest.raises(KeyboardInterrupt):
        run_until_decided(tmp_path / "cut", RULE, sweep("cut"), cut)
    rest = Writer(effect=0.012)
    run_until_decided(tmp_path / "cut", RULE, sweep("cut"), rest)
    assert (tmp_path / "cut/decision.json").read_bytes() == (tmp_path / "whole/decision.json").read_bytes()
    assert len(set(cut.made + rest.made)) == len(cut.made + rest.made)


def test_only_the_two_that_are_compared_get_further_seeds(sweep: Sweep, tmp_path: Path) -> None:
    writer = Writer(effect=0.012)
    needed = run_until_decided(tmp_path / "out", RULE, sweep(settings=(LOW, OTHER, HIGH)), writer)
    assert [n for s, n in writer.made if s == "0.5"] == [201, 202, 203, 204]
    assert {trial.directory.name for trial in needed} == {f"{s},{n}" for s, n in writer.made}


def test_a_run_that_fails_ends_it(sweep: Sweep, tmp_path: Path) -> None:
    trials, writer = sweep(), Writer(effect=0)
    fails = next(trial for trial in trials if trial.settings == HIGH and trial.seed == 206)

    def run(trials: Sequence[Trial]) -> None:
        Writer.run(writer, [trial for trial in trials if trial != fails])
        writer.failed += [trial for trial in trials if trial == fails]

    writer.run = run  # type: ignore[method-assign]
    run_until_decided(tmp_path / "out", RULE, trials, writer)
    assert [row["seeds"] for row in decision(tmp_path / "out")["looks"]] == [4, 5]
    assert not decision(tmp_path / "out")["ended"]
    assert decision_notes(tmp_path / "out")[0].startswith("not decided yet: gamma=1 against gamma=0.8: difference")


def test_a_judge_who_says_nothing_ends_it(sweep: Sweep, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="seed 201: hpsv2 gave no scores on unseen prompts to compare"):
        run_until_decided(
            tmp_path / "out", Rule(HIGH, LOW, "unseen", "hpsv2", RULE.seeds, 4), sweep(), Writer(effect=0)
        )


# -- fixed beforehand -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (Rule(HIGH, LOW, "unseen", "clip", tuple(range(201, 221)), 4), "seeds"),
        (Rule(HIGH, LOW, "unseen", "clip", RULE.seeds, 5), "first_look"),
        (Rule(LOW, HIGH, "unseen", "clip", RULE.seeds, 4), "arm, against"),
        (Rule(HIGH, LOW, "train", "clip", RULE.seeds, 4), "prompts"),
        (Rule(HIGH, LOW, "unseen", "hpsv2", RULE.seeds, 4), "judge"),
    ],
)
def test_a_rule_cannot_change_after_a_look(sweep: Sweep, tmp_path: Path, changed: Rule, named: str) -> None:
    run_until_decided(tmp_path / "out", RULE, sweep(), Writer(effect=0))
    before = decision(tmp_path / "out")
    with pytest.raises(ConfigError, match=rf"fixed another rule when this sweep began \({named}\)"):
        run_until_decided(tmp_path / "out", changed, sweep(), Writer(effect=0))
    assert decision(tmp_path / "out") == before


def test_every_later_table_says_what_its_intervals_are_worth(sweep: Sweep, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_run(sweep()[0].directory, {"unseen": gain(LOW, 201, 0.012)})
    needed = run_until_decided(out, RULE, sweep(), Writer(effect=0.012))
    notes = write_results(out, needed).notes
    assert "Student's, which are not valid for runs that this rule stopped" in notes[1]
    assert notes[2].startswith("1 runs had finished before the rule was fixed")
    assert list(notes) == decision_notes(out)
    assert json.loads((out / "sweep.json").read_text())["missing"] == []


# -- the command ----------------------------------------------------------------------------------------------


@pytest.fixture
def config(small_values: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(small_values))
    return path


GRID = ("--grid", "steps.gamma=0.8,1")


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["sweep", "--local", *map(str, arguments)])


def test_the_command_decides_from_finished_runs(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for settings in (LOW, HIGH):
        for seed in range(1, 13):
            gains = {"unseen": gain(settings, seed, 0.012), "train": 0.1}
            write_run(out / f"steps.gamma={settings[0][1]},seed={seed}", gains)
    arguments = (config, *GRID, "--seeds", "1-4", "--until-decided", "--max-seeds", "12", "--paired", "--out", out)
    result = command(*arguments)
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "decided: gamma=1 is higher than gamma=0.8: difference +0.0" in text
    assert "(unseen prompts, judge clip)" in text
    assert "24 runs had finished before the rule was fixed" in text
    first = (out / "decision.json").read_bytes()
    assert command(*arguments).exit_code == 0
    assert (out / "decision.json").read_bytes() == first
    changed = command(*arguments[:-4], "20", *arguments[-3:])
    assert (changed.exit_code, len(changed.stderr.splitlines())) == (2, 1)
    assert "fixed another rule when this sweep began (seeds)" in changed.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--max-seeds", "9"], "--max-seeds says how --until-decided decides; add that, or leave it out"),
        (
            ["--against", "gamma=2"],
            "--against=gamma=2: names 0 settings of this sweep; give one of 'gamma=0.8', 'gamma",
        ),
        (["--until-decided", "--seeds", "1-3", "--on", "all"], "--on=all: not in this configuration; allowed here: un"),
    ],
)
def test_bad_options_are_one_line(config: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    result = command(config, *GRID, *arguments, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("until_decided", "asked", "seeds", "said"),
    [
        (
            False,
            Asked(compare="gamma=1"),
            None,
            "--compare says how --until-decided decides; add that, or leave it out",
        ),
        (False, Asked(on="train"), (1, 2, 3), "--on says how"),
        (False, Asked(judge="clip"), (1, 2, 3), "--judge says how"),
        (False, Asked(max_seeds=9), (1, 2, 3), "--max-seeds says how"),
        (True, Asked(), None, "begins with 3 seeds or more, and no more than --max-seeds=30; --seeds gives 0"),
        (True, Asked(), (1, 2), "--seeds gives 2"),
        (True, Asked(), tuple(range(31)), "--seeds gives 31"),
        (True, Asked(max_seeds=8), tuple(range(9)), "no more than --max-seeds=8; --seeds gives 9"),
    ],
)
def test_seeds_that_no_rule_takes(until_decided: bool, asked: Asked, seeds: tuple[int, ...] | None, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        most_seeds(until_decided, asked, seeds)


@pytest.mark.parametrize(
    ("settings", "asked", "said"),
    [
        ((LOW,), Asked(), "--until-decided compares two settings; give --grid two values"),
        ((LOW, HIGH, OTHER), Asked(), "name the setting by --compare, one of 'gamma=1', 'gamma=0.5'"),
        ((LOW, HIGH), Asked(compare="gamma=0.8"), "--compare=gamma=0.8: names 0 settings"),
        ((LOW, HIGH), Asked(on="all"), "--on=all: not in this configuration; allowed here: unseen, train"),
        ((LOW, HIGH), Asked(judge="x"), "--judge=x: not in this configuration; allowed here: "),
    ],
)
def test_what_names_no_comparison(sweep: Sweep, settings: Sequence[Any], asked: Asked, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        name_rule(sweep(settings=settings), 4, LOW, asked)


def test_defaults_name_the_comparison(sweep: Sweep) -> None:
    rule = name_rule(sweep(), 4, LOW, Asked())
    config = load_config()
    assert rule == Rule(HIGH, LOW, "unseen", config.reward.scorer.name, RULE.seeds, 4)
    three = sweep(settings=(LOW, HIGH, OTHER))
    assert name_rule(three, 4, HIGH, Asked("gamma=0.5", "train")).arm == OTHER
    assert most_seeds(True, Asked(), RULE.seeds) == 30
    assert most_seeds(True, Asked(max_seeds=12), RULE.seeds) == 12
    assert most_seeds(False, Asked(), None) is None
