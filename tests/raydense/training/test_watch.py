"""The watch: what it suspects, when a reward has fallen for it, and what either does to a run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from raydense.cli import app
from raydense.config import Config
from raydense.core.types import GroupMeta, UnitReport, WorkUnit
from raydense.records.stage_file import Entry
from raydense.training.normalising import StageScales
from raydense.training.watch import RewardWatch, find_fall, find_signs

MONITOR = "reward/monitor/m"
NAMES = ("reward", MONITOR, MONITOR + "2")


def stage(groups: int = 100, std: float = 1.0, **means: float) -> Entry:
    """An entry; names: reward, m, saturation, entropy, similarity."""
    full = {"reward": "reward", "m": MONITOR}
    return {full.get(n, f"images/{n}"): {"mean": v, "std": std, "groups": float(groups)} for n, v in means.items()}


def signs(*stages: Entry) -> Sequence[str]:
    return find_signs(stages[:-1], stages[-1], sigmas=3, collapse=3)


def test_reward_up_and_monitor_down() -> None:
    (sign,) = signs(stage(reward=0, m=0), stage(reward=1, m=-1))
    assert sign == "the reward rose from 0 to 1 (+7.1 standard errors) while m fell from 0 to -1 (-7.1)"


@pytest.mark.parametrize(
    ("reward", "monitor"),
    [(1, 0), (1, 1), (0, -1), (-1, -1), (1, -0.4), (0.4, -1)],  # 0.42 is three standard errors of the difference
)
def test_one_of_the_two_alone_is_none(reward: float, monitor: float) -> None:
    assert signs(stage(reward=0, m=0), stage(reward=reward, m=monitor)) == ()


def test_a_monitor_that_rose_and_then_turned_is_compared_with_its_best_stage() -> None:
    run = [stage(reward=0, m=0), stage(reward=1, m=2), stage(reward=2, m=1)]
    assert signs(*run[:2]) == ()
    (sign,) = signs(*run)
    assert "m fell from 2 to 1" in sign
    assert "rose from 1 to 2" in sign


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"saturation": 4}, "the pictures' saturation went from 0 to 4 (+4.0 standard deviations"),
        ({"saturation": -4}, "the pictures' saturation went from 0 to -4"),
        ({"entropy": -4}, "the pictures' entropy went from 0 to -4"),
        ({"similarity": 4}, "the pictures' similarity went from 0 to 4"),
        ({"entropy": 4}, ""),
        ({"similarity": -4}, ""),
        ({"saturation": 2.9}, ""),
    ],
)
def test_pictures_that_collapse(change: dict[str, float], said: str) -> None:
    plain = {"reward": 0.0, "saturation": 0.0, "entropy": 0.0, "similarity": 0.0}
    found = signs(stage(**plain), stage(**{**plain, **change}))
    assert len(found) == (said != "")
    assert said in "".join(found)


def test_a_first_stage_and_single_groups_prove_nothing() -> None:
    assert signs(stage(reward=0, m=0, entropy=0)) == ()
    assert signs(stage(groups=1, reward=0, m=0), stage(groups=1, reward=9, m=-9)) == ()


def test_false_alarms_are_as_rare_as_the_docstring_says() -> None:
    """Runs without a trend: 10 stages of 80 groups, two monitors; counted over 4,000 runs."""
    draws = np.random.default_rng(0)
    alarms = 0
    for _ in range(4000):
        means = draws.standard_normal((10, 3)) / np.sqrt(80)
        run: list[Entry] = [
            {name: {"mean": m, "std": 1.0, "groups": 80.0} for name, m in zip(NAMES, row, strict=True)}
            for row in means.tolist()
        ]
        alarms += any(find_signs(run[:s], run[s], 3.0, 3.0) for s in range(1, 10))
    assert alarms < 4


def fall(*stages: Entry) -> str:
    return find_fall(stages[:-1], stages[-1], sigmas=3)


def test_a_reward_below_the_first_stages() -> None:
    said = fall(stage(reward=0), stage(reward=2), stage(reward=-1))  # below the first, not the best
    assert said == (
        "the reward fell from 0 in the first stage to -1 (-7.1 standard errors): training makes the pictures worse; "
        "start again with a lower train.lr or fewer stage.steps"
    )
    assert fall(stage(reward=5, std=0), stage(reward=4, std=0))  # nothing varies: any fall is one
    assert fall(stage(reward=0, std=1e-100), stage(reward=-1, std=1e-100))


@pytest.mark.parametrize(
    "stages",
    [
        [stage(reward=0)],
        [stage(reward=0), stage(reward=1)],
        [stage(reward=0), stage(reward=-0.4)],  # 0.42 is three standard errors of the difference
        [stage(reward=0), stage(reward=2), stage(reward=0)],
        [stage(reward=0, std=0), stage(reward=0, std=0)],
        [stage(groups=1, reward=0), stage(groups=1, reward=-9)],
        [stage(groups=4, reward=0), stage(groups=100, reward=-9)],
        [stage(groups=5, reward=0), stage(groups=5, reward=-2)],  # 3.2 standard errors, of eight degrees of freedom
    ],
)
def test_no_fall(stages: list[Entry]) -> None:
    assert fall(*stages) == ""


@pytest.mark.parametrize("groups", [5, 80])
def test_a_fall_is_as_rare_as_the_level_says(groups: int) -> None:
    """Two stages that are alike: Welch's test is not above its level of 0.00135, and at 80 groups not far below."""
    draws = np.random.default_rng(groups)
    scores = draws.standard_normal((20_000, 2, groups))
    means, stds = scores.mean(-1), scores.std(-1, ddof=1)
    falls = 0
    for (first, second), (one, other) in zip(means.tolist(), stds.tolist(), strict=True):
        stages = [{"reward": {"mean": m, "std": s, "groups": groups}} for m, s in ((first, one), (second, other))]
        falls += bool(fall(*stages))  # type: ignore[arg-type]
    assert falls < 27 * 1.6
    assert groups < 80 or falls > 27 * 0.4


def test_a_run_without_a_trend_is_said_to_have_fallen_as_rarely_as_the_docstring_says() -> None:
    """10 stages of 80 groups; counted over 4,000 runs."""
    means = np.random.default_rng(0).standard_normal((4000, 10)) / np.sqrt(80)
    falls = 0
    for row in means.tolist():
        run = [stage(80, reward=mean) for mean in row]
        falls += any(fall(*run[: s + 1]) for s in range(1, 10))
    assert 4 < falls < 40


def test_a_stage_that_fell_is_not_suspected_of_hacking(small_config: Callable[..., Config], tmp_path: Path) -> None:
    scorer = {"kind": "callable", "name": "r", "target": "math:sin"}
    reward = small_config(reward={"scorer": scorer, "watch": {"collapse": 1e-3}}).reward
    watch = RewardWatch(reward, StageScales(reward.scorer, tmp_path), tmp_path)
    watch.look(0, [report(20, 0.0, 0.0)])
    risen = watch.look(1, [report(30, 1.0, 0.0)])
    assert risen.signs and not risen.fall
    fallen = watch.look(2, [report(30, -1.0, 0.0)])
    assert fallen.fall and not fallen.signs
    assert fallen.values["reward/hacking_suspected"] == 0


def report(groups: int, reward: float, monitor: float, noise: float = 0.01) -> UnitReport:
    draws = np.random.default_rng(groups)
    metas = []
    for index in range(groups):
        off = draws.normal(0, noise, 2)
        images = {"saturation": 0.5 + off[0], "entropy": 3.0 + off[1], "similarity": 0.2 + off[0]}
        metas.append(
            GroupMeta(0, index, "a", (reward + off[0],) * 2, {"m": (monitor + off[1],) * 2}, 1, 0, "", images=images)
        )
    return UnitReport(WorkUnit(0, 0, tuple(range(groups)), ("a",) * groups, 0), tuple(metas))


def test_a_run_that_continues_remembers_its_stages(small_config: Callable[..., Config], tmp_path: Path) -> None:
    monitors = [{"kind": "callable", "name": "m", "target": "math:sin"}]
    scorer = {"kind": "callable", "name": "r", "target": "math:sin"}
    reward = small_config(reward={"scorer": scorer, "monitors": monitors}).reward
    scales = StageScales(reward.scorer, tmp_path)
    stages = [report(20, 0.0, 0.0), report(20, 1.0, -1.0)]
    whole = RewardWatch(reward, scales, tmp_path)
    assert whole.look(0, stages[:1]).values["reward/hacking_suspected"] == 0
    continued = RewardWatch(reward, scales, tmp_path)
    found = continued.look(1, stages[1:])
    assert found == continued.look(1, stages[1:])
    assert found.values["reward/hacking_suspected"] == 1
    assert found.values["images/entropy"] == pytest.approx(3.0, abs=0.01)
    assert "m fell from" in found.signs[0]


def test_a_monitor_that_failed_is_watched_by_what_it_scored(
    small_config: Callable[..., Config], tmp_path: Path
) -> None:
    monitors = [{"kind": "callable", "name": "m", "target": "math:sin"}]
    scorer = {"kind": "callable", "name": "r", "target": "math:sin"}
    reward = small_config(reward={"scorer": scorer, "monitors": monitors}).reward
    watch = RewardWatch(reward, StageScales(reward.scorer, tmp_path), tmp_path)

    def without(failed: int, whole: UnitReport) -> UnitReport:
        nothing = {"m": (math.nan, math.nan)}
        metas = [replace(g, monitors=nothing) if i < failed else g for i, g in enumerate(whole.groups)]
        return replace(whole, groups=tuple(metas))

    assert watch.look(0, [without(5, report(20, 0.0, 0.0))]).signs == ()
    assert watch.look(1, [without(20, report(20, 1.0, -1.0))]).signs == ()  # nothing to compare
    (sign,) = watch.look(2, [without(5, report(20, 1.0, -1.0))]).signs
    assert "m fell from" in sign
    stages = json.loads((tmp_path / "watch.json").read_text("utf-8"), parse_constant=pytest.fail)
    assert [stage.get("reward/monitor/m", {}).get("groups") for stage in stages.values()] == [15.0, None, 15.0]


# -- in a run ---------------------------------------------------------------------------------------------


CALLS = {"up": 0, "down": 0}


def rising(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    """A reward that depends on how often it was asked: the sharpest trend that there is."""
    CALLS["up"] += 1
    return np.arange(len(images)) % 4 * 1e-3 + CALLS["up"]


def sinking(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    return -rising(images, prompts)


def falling(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    CALLS["down"] += 1
    return np.arange(len(images)) % 4 * 1e-3 - CALLS["down"]


def train(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


def stopped_by(reward: dict[str, Any], small_values: dict[str, Any], run: Path) -> Result:
    """A run of its own configuration file, which its watch ends."""
    config = run.with_suffix(".yaml")
    config.write_text(yaml.safe_dump({**small_values, "reward": {**reward, "watch": {"stop": True}}}))
    stopped = train(config, "--local", "--out", run)
    assert stopped.exit_code == 1
    return stopped


def test_a_run_says_it_marks_it_and_stops_where_asked(small_values: dict[str, Any], tmp_path: Path) -> None:
    reward = {
        "scorer": {"kind": "callable", "name": "up", "target": f"{__name__}:rising"},
        "monitors": [{"kind": "callable", "name": "down", "target": f"{__name__}:falling"}],
    }
    run = tmp_path / "run"
    stopped = stopped_by(reward, small_values, run)
    assert "stage 2 of 2: reward hacking suspected: the reward rose from" in stopped.output
    assert "reward.watch.stop: reward hacking suspected" in stopped.stderr
    assert "the reward rose" in json.loads((run / "failure.json").read_text())["what"]

    gone_on = train("--resume", run, "--local", "--set", "reward.watch.stop=false")
    assert gone_on.exit_code == 0, gone_on.output
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    marks = [row["reward/hacking_suspected"] for row in rows if row["kind"] == "stage"]
    assert marks == [0.0, 1.0]
    for row in rows:
        if row["kind"] == "stage":
            assert 0 <= row["images/saturation"] <= 1
            assert 0 < row["images/entropy"] <= 6
            assert -1 <= row["images/similarity"] <= 1


def test_a_run_whose_reward_falls_says_so_stops_where_asked_and_ends_with_a_line(
    small_values: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "a run"
    reward = {"scorer": {"kind": "callable", "name": "r", "target": f"{__name__}:sinking"}}
    stopped = stopped_by(reward, small_values, run)
    assert "stage 2 of 2: the reward fell from" in stopped.output
    assert "reward.watch.stop: the reward fell from" in stopped.stderr
    assert f"raydense train --resume '{run}' --set reward.watch.stop=false" in stopped.stderr
    status = CliRunner().invoke(app, ["status", str(run)])
    assert "reward.watch.stop: the reward fell from" in " ".join(status.output.split())

    gone_on = train("--resume", run, "--local", "--set", "reward.watch.stop=false")
    assert gone_on.exit_code == 0, gone_on.output
    assert not (run / "failure.json").exists()
    assert "reward.watch.stop" not in CliRunner().invoke(app, ["status", str(run)]).output
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["reward/fallen"] for row in rows if row["kind"] == "stage"] == [0.0, 1.0]
    assert json.loads((run / "summary.json").read_text())["worse_on"] == ["train", "unseen"]
    assert "the LoRA is worse than what training began with: r on train prompts -" in gone_on.output
    assert CliRunner().invoke(app, ["report", str(run)]).exit_code == 0
    report_page = (run / "report.html").read_text("utf-8")
    assert "The reward fell" in report_page
    assert "The LoRA is worse than what training began with</strong> on train, unseen prompts" in report_page
    assert "The run failed" not in report_page
