"""`raydense sweep`: plain runs, skipped when finished, continued when cut, and a table that follows from them."""

from __future__ import annotations

import csv
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from raydense.cli import app
from raydense.config import Config, ConfigError, load_config
from raydense.core.statistics import Interval, mean_interval
from raydense.evaluation.outcomes import Outcome, outcomes
from raydense.evaluation.paired import Arm
from raydense.evaluation.sweep import (
    Trial,
    find_setting,
    label,
    leading,
    more_seeds,
    parse_arms,
    parse_grid,
    parse_seeds,
    plan_sweep,
)
from raydense.evaluation.sweep_plot import plot
from raydense.evaluation.sweep_runs import SweepRunner
from raydense.evaluation.sweep_table import write_results

LORA = "lora/pytorch_lora_weights.safetensors"
GRID = ("--grid", "steps.gamma=0.8,1", "--seeds", "3,4", "--jobs", "2")


@pytest.fixture(autouse=True, scope="module")
def quick_starts(warm_python: Path) -> Iterator[None]:
    """A sweep starts its runs with this Python."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(warm_python))
        yield


def sweep(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["sweep", "--local", *map(str, arguments)])


@pytest.fixture(scope="module")
def config(small_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    stage = {"count": 1, "groups": 5, "steps": 3}
    path.write_text(yaml.safe_dump({**small_values, "stage": stage}))
    return path


def train(config: Path, gamma: str, seed: int, out: Path) -> None:
    settings = ("--set", f"steps.gamma={gamma}", "--set", f"seed={seed}")
    assert CliRunner().invoke(app, ["train", "--local", str(config), *settings, "--out", str(out)]).exit_code == 0


@pytest.fixture(scope="module")
def swept(config: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Four runs: the first and the last were there already, as plain runs; the sweep made the two between."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    for gamma, seed in (("0.8", 3), ("1", 4)):
        train(config, gamma, seed, out / f"steps.gamma={gamma},seed={seed}")
    return out, sweep(config, *GRID, "--out", out)


# -- what is run ----------------------------------------------------------------------------------------------


def test_a_grid_is_read_as_set_would_read_it() -> None:
    assert parse_grid(
        ["steps.gamma=0.8,1", "train.lr=1e-4", "train.betas=[0.9, 0.99],[0.8, 0.9]", "a.b=true,null", "name=#1,no: 010"]
    ) == {
        "steps.gamma": ("0.8", "1"),
        "train.lr": ("1e-4",),
        "train.betas": ("[0.9, 0.99]", "[0.8, 0.9]"),
        "a.b": ("true", "null"),
        "name": ("#1", "no: 010"),
    }


@pytest.mark.parametrize("option", ["steps.gamma", "=1", "steps.gamma=", "steps.gamma=[1", "seed=1,2", "train.c=1,2,1"])
def test_a_grid_that_is_none_is_refused(option: str) -> None:
    with pytest.raises(ConfigError, match="expected key=value,value"):
        parse_grid([option])
    with pytest.raises(ConfigError, match="each key once"):
        parse_grid(["steps.gamma=1", "steps.gamma=2"])


def test_arms_are_settings_that_go_together(config: Path, tmp_path: Path) -> None:
    grid = parse_grid(["steps.exclude_last=0,1"])
    arms = parse_arms(["steps.gamma=0.8,train.lr=1e-4", "steps.gamma=1"], grid)
    assert arms == [(("steps.gamma", "0.8"), ("train.lr", "1e-4")), (("steps.gamma", "1"),)]
    trials = plan_sweep(tmp_path, config, None, [], grid, (1, 2), arms=arms)
    assert [(t.config.steps.gamma, t.config.train.lr, t.config.steps.exclude_last, t.seed) for t in trials] == [
        (gamma, lr, last, seed) for gamma, lr in ((0.8, 1e-4), (1.0, 1e-2)) for last in (0, 1) for seed in (1, 2)
    ]
    assert trials[0].name == "steps.gamma=0.8,train.lr=1e-4,steps.exclude_last=0,seed=1"


@pytest.mark.parametrize("arms", [["steps.gamma=1", "steps.gamma=1.0"], ["train.c=10,train.lr=0.01", "steps.draws=2"]])
def test_one_configuration_in_other_words_is_no_second_arm(arms: list[str], config: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(gamma=1.0 is gamma=1|draws=2 is c=10, lr=0.01) in other words"):
        plan_sweep(tmp_path, config, None, [], {}, (1,), arms=parse_arms(arms, {}))


@pytest.mark.parametrize(
    ("key", "shown"),
    [("steps.gamma", "gamma"), ("steps.count", "steps.count"), ("stage.count", "stage.count"), ("train.lr", "lr")],
)
def test_a_label_says_which_setting_it_is(key: str, shown: str) -> None:
    """`steps.count` and `stage.count` are different arms, in tables as in the figure of gains."""
    assert label(((key, "4"), ("train.c", "5"))) == f"{shown}=4, c=5"


def test_arms_are_named_by_what_tells_them_apart() -> None:
    dense = (("train.objective", "dense_preference"),)
    dpo = (("train.objective", "diffusion_dpo"), ("train.lr", "1e-3"))
    faster = (("train.objective", "diffusion_dpo"), ("train.lr", "2e-3"), ("train.c", "5"))
    assert (leading([dense, dpo, dense]), leading([dense, dpo, faster])) == (1, 2)
    grid = [(("steps.gamma", gamma), ("train.c", c)) for gamma in ("0.8", "1") for c in ("5", "10")]
    assert leading(grid) == 2
    assert (leading([()]), leading([])) == (0, 0)
    assert find_setting("--against", "objective=diffusion_dpo", [dense, dpo]) == dpo
    assert find_setting("--against", "objective=diffusion_dpo", [dense, faster, dpo[:1]]) == dpo[:1]
    with pytest.raises(ConfigError, match="names 2 settings"):
        find_setting("--against", "objective=diffusion_dpo", [dense, dpo, faster])
    assert find_setting("--against", "train.objective=diffusion_dpo,train.lr=1e-3", [dense, dpo]) == dpo


def test_an_arms_value_may_be_a_list() -> None:
    (arm,) = parse_arms(['steps.window=[1, 6],train.lr=1e-3, policy.lora_targets=["to_q","to_k"]'], {})
    assert arm == (("steps.window", "[1, 6]"), ("train.lr", "1e-3"), ("policy.lora_targets", '["to_q","to_k"]'))


@pytest.mark.parametrize(
    "arm",
    ["", "a", "a=", "=1", "a=1,a=2", "seed=1", "g.h=1", "a=1,,b=2", "a=[1", "a=1,2", "x.y=1", "x.z=2,x.y=1"],
)
def test_an_arm_that_is_none_is_refused(arm: str) -> None:
    with pytest.raises(ConfigError, match="expected key=value,key=value, each arm once"):
        parse_arms(["x.y=1", "x.y=1,x.z=2", arm], {"g.h": ("1", "2")})


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("101, 102", (101, 102)),
        ("201-204", (201, 202, 203, 204)),
        ("9,3-4,0", (9, 3, 4, 0)),
        ("7-7", (7,)),
        (None, None),
    ],
)
def test_seeds_are_a_list_or_a_range(text: str | None, seeds: tuple[int, ...] | None) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["1,1", "a", "", "1,-2", "1-3,2", "3-1", "1-", "1--2", "1-2-3", "0-1000", "1.5"])
def test_seeds_are_different_whole_numbers(text: str) -> None:
    with pytest.raises(ConfigError, match="expected different whole numbers"):
        parse_seeds(text)


def test_further_seeds_follow_the_largest() -> None:
    assert more_seeds((201, 202), 5) == (201, 202, 203, 204, 205)
    assert more_seeds((9, 3), 4) == (9, 3, 10, 11)
    assert more_seeds((1, 2), 2) == (1, 2)


def test_a_setting_is_named_as_the_table_shows_it() -> None:
    known = [(("steps.gamma", gamma), ("a.b", "[1, 2]")) for gamma in ("0.8", "1")]
    for name in ("gamma=1, b=[1, 2]", "gamma=1,b=[1,2]", "steps.gamma=1,a.b=[1, 2]"):
        assert find_setting("--against", name, known) == known[1]
    with pytest.raises(ConfigError, match=r"--against=gamma=2: names 0 settings.*'gamma=0.8, b=\[1, 2\]', 'gamma=1"):
        find_setting("--against", "gamma=2", known)
    twice = [(("a.lr", "1"),), (("b.lr", "1"),)]
    with pytest.raises(ConfigError, match="names 2 settings"):
        find_setting("--compare", "lr=1", twice)
    assert find_setting("--compare", "b.lr=1", twice) == twice[1]


def test_every_combination_meets_every_seed_in_a_directory_of_its_own(config: Path, tmp_path: Path) -> None:
    grid = parse_grid(["steps.gamma=0.8,1", "steps.exclude_last=0,2"])
    trials = plan_sweep(tmp_path, config, None, ["train.c=3"], grid, (1, 2))
    found = [(t.config.steps.gamma, t.config.steps.exclude_last, t.config.seed) for t in trials]
    assert found == [(g, e, s) for g in (0.8, 1.0) for e in (0, 2) for s in (1, 2)]
    assert {t.config.train.c for t in trials} == {3.0}
    assert len({t.directory for t in trials}) == 8
    assert trials[0].name == "steps.gamma=0.8,steps.exclude_last=0,seed=1"
    assert plan_sweep(tmp_path, config, None, [], {}, None)[0].seed == load_config(config).seed


@pytest.mark.parametrize(
    ("option", "read"),
    [
        ("steps.gamma=0.8,1", lambda c: c.steps.gamma),
        ("train.c=5,12.5", lambda c: c.train.c),
        ("sampler.keep=2,3", lambda c: c.sampler.keep),
        ("steps.draws=1,3", lambda c: c.steps.draws),
        ("train.tuple_size=2,3", lambda c: c.train.tuple_size),
        ("steps.exclude_last=0,2", lambda c: c.steps.exclude_last),
    ],
)
def test_what_the_paper_ablates_is_a_key(
    config: Path, tmp_path: Path, option: str, read: Callable[[Config], float]
) -> None:
    trials = plan_sweep(tmp_path, config, None, [], parse_grid([option]), None)
    assert [read(trial.config) for trial in trials] == [float(v) for v in option.partition("=")[2].split(",")]


def test_values_that_no_file_name_takes_still_differ(config: Path, tmp_path: Path) -> None:
    names = [t.name for t in plan_sweep(tmp_path, config, None, [], {"name": ("a b", "a?b")}, None)]
    assert len(set(names)) == 2
    assert not any(" " in name or "?" in name for name in names)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--grid", "steps.gama=1"], "steps.gama is not a setting"),
        (["--grid", "steps.exclude_last=0,4"], "exclude_last=4 leaves no step"),
        (["--set", "prompts.train=absent.txt"], "absent.txt: cannot be read"),
        (["--grid", "steps.gamma=0.8,1", "--set", "steps.gamma=0.5"], "gamma=0.5: --grid sets steps.gamma too; leave"),
        (
            ["--arm", "steps.gamma=1", "--arm", "train.lr=1,steps.gamma=0.8", "--set", "steps.gamma=1"],
            "every --arm sets",
        ),
        (["--seeds", "1,2", "--set", "seed=3"], "--set seed=3: --seeds sets seed too; leave one of them out"),
        (
            ["--paired", "--grid", "steps.gamma=0.8,1"],
            "this sweep has 2 and 1; such as --grid steps.gamma=0.8,1 --seeds",
        ),
        (["--paired", "--grid", "steps.gamma=1", "--seeds", "1-3"], "this sweep has 1 and 3; such as"),
    ],
)
def test_what_cannot_run_is_said_before_anything_does(
    config: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    result = sweep(config, *arguments, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "out").exists()


def test_what_is_set_for_all_holds_in_the_arms_that_say_nothing_of_it(config: Path, tmp_path: Path) -> None:
    arms = parse_arms(["train.lr=1e-3", "steps.gamma=1"], {})
    trials = plan_sweep(tmp_path, config, None, ["steps.gamma=0.5", "seed=3"], {}, None, arms=arms)
    assert [(t.config.steps.gamma, t.seed) for t in trials] == [(0.5, 3), (1.0, 3)]


# -- the runs -------------------------------------------------------------------------------------------------


def test_each_run_is_a_plain_run(swept: tuple[Path, Result], config: Path, tmp_path: Path) -> None:
    out, result = swept
    assert result.exit_code == 0, result.output
    assert "2 of 4 runs are finished already" in result.output
    assert "gamma=1, seed 3: starts" in result.output
    train(config, "1", 3, tmp_path / "plain")
    for name in (LORA, "scores.json", "metrics.jsonl"):
        assert (out / "steps.gamma=1,seed=3" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_a_finished_sweep_runs_nothing_again(swept: tuple[Path, Result], config: Path) -> None:
    out, _ = swept
    before = {path: path.stat().st_mtime_ns for path in out.rglob("metrics.jsonl")}
    result = sweep(config, *GRID, "--out", out)
    assert result.exit_code == 0
    assert "4 of 4 runs are finished already" in result.output
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("metrics.jsonl")}


def test_a_directory_of_another_sweep_is_refused(swept: tuple[Path, Result], config: Path) -> None:
    out, _ = swept
    result = sweep(config, *GRID, "--set", "train.c=3", "--out", out)
    assert result.exit_code == 2
    assert "train.c: 10.0 -> 3.0" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_runs_of_other_files_are_not_compared(
    small_values: dict[str, Any], swept: tuple[Path, Result], tmp_path: Path
) -> None:
    """As if the prompts had been overwritten since two of the four runs were made, and again before the last begins."""
    out = Path(shutil.copytree(swept[0], tmp_path / "out"))
    shutil.rmtree(out / "steps.gamma=1,seed=4")
    prompts, config = tmp_path / "train.txt", tmp_path / "small.yaml"
    prompts.write_text("a cat\na dog\na red fox\n")
    stage = {"count": 1, "groups": 5, "steps": 3}
    values = {**small_values, "stage": stage, "prompts": {**small_values["prompts"], "train": str(prompts)}}
    config.write_text(yaml.safe_dump(values))
    for run in out.glob("*/config.yaml"):
        text = yaml.safe_load(run.read_text())
        run.write_text(yaml.safe_dump({**text, "prompts": {**text["prompts"], "train": str(prompts)}}))

    def plan(**options: Any) -> list[Trial]:
        return plan_sweep(out, config, None, [], parse_grid(["steps.gamma=0.8,1"]), (3, 4), **options)

    assert len(plan()) == 4
    prompts.write_text("a cat\na dog\na pig\n")
    said = r"^.*gamma=0.8,seed=3 was made from another prompts.train=.*; .*; .*; give another --out, or go on by"
    with pytest.raises(ConfigError, match=said):
        plan()
    trials = plan(accept_changes=True)
    write_results(out, trials)
    assert len(json.loads((out / "sweep.json").read_text())["accepted_changes"]) == 3

    prompts.write_text("a cat\na dog\na cow\n")
    runner = SweepRunner([str(config)], local=True, jobs=1, say=lambda line: None, accept_changes=True)
    with pytest.raises(ConfigError, match=r"prompts.train=.*: changed since the sweep began; put them back"):
        runner.run(trials)
    assert not (out / "steps.gamma=1,seed=4").exists()


@pytest.mark.slow
def test_a_sweep_that_was_stopped_continues_its_runs(swept: tuple[Path, Result], config: Path, tmp_path: Path) -> None:
    """plain: `test_a_run_killed_at_every_moment_continues_to_the_same_bytes`, of one run."""
    out = tmp_path / "out"
    grid = ("--grid", "steps.gamma=0.8", "--seeds", "3,4")
    arguments = ["sweep", "--local", str(config), *grid, "--jobs", "1", "--out", str(out)]
    process = subprocess.Popen([sys.executable, "-m", "raydense.cli", *arguments])
    first = out / "steps.gamma=0.8,seed=3"
    deadline = time.monotonic() + 120
    while not (first / "checkpoints/stage-0000/manifest.json").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    assert not (out / "steps.gamma=0.8,seed=4").exists()
    result = sweep(config, *grid, "--jobs", "2", "--out", out)
    assert result.exit_code == 0, result.output
    assert "gamma=0.8, seed 3: continues" in result.output
    for seed in (3, 4):
        ours, theirs = (root / f"steps.gamma=0.8,seed={seed}" / LORA for root in (out, swept[0]))
        assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.slow
@pytest.mark.ray
def test_on_ray_the_runs_are_the_same(swept: tuple[Path, Result], config: Path, tmp_path: Path) -> None:
    """plain: `test_where_it_runs_changes_no_byte`, of one run."""
    arguments = ["sweep", str(config), "--grid", "steps.gamma=1", "--seeds", "4", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    ours, theirs = (root / "steps.gamma=1,seed=4" / LORA for root in (tmp_path, swept[0]))
    assert ours.read_bytes() == theirs.read_bytes()
    assert json.loads((tmp_path / "steps.gamma=1,seed=4" / "summary.json").read_text())["runner"] == "ray"


def test_a_run_that_fails_is_named_and_the_others_are_still_compared(
    swept: tuple[Path, Result], config: Path, tmp_path: Path
) -> None:
    shutil.copytree(swept[0], tmp_path, dirs_exist_ok=True)
    broken = tmp_path / "steps.gamma=0.5,seed=3"
    broken.mkdir()
    (broken / "failure.json").write_text('{"what": "the reward fell"}')  # of another run; this one says why itself
    result = sweep(config, "--grid", "steps.gamma=1,0.5", "--seeds", "3", "--out", tmp_path)
    assert result.exit_code == 1
    (why,) = broken.with_name(f"{broken.name}.log").read_text().splitlines()
    assert "is not empty and is never overwritten" in why
    assert f"gamma=0.5, seed 3: failed with exit code 2 ({why}); see {broken}.log" in result.output
    assert json.loads((tmp_path / "sweep.json").read_text())["missing"] == [broken.name]
    assert "| gamma=1 |" in (tmp_path / "sweep.md").read_text()


# -- the table ------------------------------------------------------------------------------------------------


def test_the_table_follows_from_the_single_scores(swept: tuple[Path, Result]) -> None:
    out, _ = swept
    found = json.loads((out / "sweep.json").read_text("utf-8"))["outcomes"]
    assert [(o["settings"]["steps.gamma"], o["prompts"]) for o in found] == [
        ("0.8", "train"), ("0.8", "unseen"), ("1", "train"), ("1", "unseen")]  # fmt: skip
    gains: dict[str, list[float]] = {}
    for gamma in ("0.8", "1"):
        for seed in (3, 4):
            scores = json.loads((out / f"steps.gamma={gamma},seed={seed}" / "scores.json").read_text())["unseen"]
            pairs = [(row["clip"]["before"], row["clip"]["after"]) for row in scores.values()]
            gains.setdefault(gamma, []).append(float(np.mean([np.subtract(a, b) for b, a in pairs])))
    assert found[1]["gain_by_seed"] == pytest.approx(gains["0.8"])
    assert found[3]["gain"] == pytest.approx(mean_interval(gains["1"]).as_dict())
    paired = mean_interval(np.subtract(gains["1"], gains["0.8"]))
    assert [found[3]["difference"][key] for key in ("mean", "low", "high")] == pytest.approx(
        [paired.mean, paired.low, paired.high]
    )
    assert found[3]["difference"]["against"] == {"steps.gamma": "0.8", "weights": ""}
    assert found[1]["difference"] is None
    with (out / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[3]["gain"]) == found[3]["gain"]["mean"]
    assert [row["steps.gamma"] for row in rows] == ["0.8", "0.8", "1", "1"]
    gains, compute = (out / "sweep.md").read_text().split("### ")[1:3]
    assert (gains.count("\n| gamma="), compute.count("\n| gamma=")) == (4, 2)


def test_the_plot_is_a_picture_with_a_panel_a_prompt_set(swept: tuple[Path, Result]) -> None:
    with Image.open(swept[0] / "sweep.png") as picture:
        assert picture.width > 1.5 * picture.height
        colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(colours, axis=0)) > 20


def test_a_name_with_dollars_is_no_formula(tmp_path: Path) -> None:
    sure = Interval(0.1, 0.0, 0.2)
    both = [
        Outcome(Arm((("name", name), ("prompts.train", "$^$"))), "train", "$a$ $b{", 0.0, 0.1, {1: 0.1}, sure, sure, {})
        for name in ("$x_{$", "$")
    ]
    plot(tmp_path / "plot.png", both)
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.width > 100


def test_one_seed_has_an_interval_over_its_prompts(swept: tuple[Path, Result], config: Path) -> None:
    alone = Trial((), 3, (), load_config(config), swept[0] / "steps.gamma=1,seed=3")
    train, _ = outcomes([alone])
    assert list(train.gains) == [3]
    assert math.isnan(train.gain.low)  # another seed is not known
    assert train.over_prompts.low < train.gain.mean < train.over_prompts.high
    assert train.over_prompts.mean == train.gain.mean


def test_tables_name_arms_in_short_and_say_once_what_each_sets(
    swept: tuple[Path, Result], config: Path, tmp_path: Path
) -> None:
    arms = [(("steps.gamma", "0.8"), ("train.lr", "1e-4"), ("train.c", "5")), (("steps.gamma", "1"),)]
    trials = [
        Trial(arm, seed, (), load_config(config), swept[0] / f"steps.gamma={arm[0][1]},seed={seed}")
        for arm in arms
        for seed in (3, 4)
    ]
    settings, gains, computed, differences = write_results(tmp_path, trials, paired=True).sheets
    assert settings.rows == (("gamma=0.8", "gamma=0.8, lr=1e-4, c=5"), ("gamma=1", "gamma=1"))
    assert {row[0] for row in (*gains.rows, *computed.rows)} == {"gamma=0.8", "gamma=1"}
    assert {row[0]: row[3] for row in differences.rows} == {"gamma=1": "gamma=0.8"}
    first = json.loads((tmp_path / "sweep.json").read_text())["outcomes"][0]
    assert first["settings"] == dict(arms[0])
