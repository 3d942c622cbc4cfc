"""The watch: whether the trained reward rises while what it stands for does not, and whether it falls.

Looked for whenever a stage is collected: two signs of reward hacking, and a fall. Everything is a mean over the stage's
groups, whose standard error is their standard deviation over √groups.

1. *Reward up, monitor down.* Against the earlier stage where the monitor stood highest, the monitor has fallen and the
   reward has risen, each by more than `reward.watch.sigmas` standard errors of the difference. The highest, not the
   first, because a monitor that first rises with the reward and then turns is the usual course of hacking.
2. *Pictures collapse.* Saturation has moved either way, entropy has fallen, or the similarity of the pictures of one
   group has risen, by more than `reward.watch.collapse` standard deviations between the groups of the first stage, so
   that the average group looks unlike nearly all groups of the base model. Here the size counts and not the error:
   any training moves these a little, and a long stage would make a little significant.

*Fall.* The reward is lower than in the first stage, by Welch's t test at the level of `reward.watch.sigmas` over five
groups or more: the run makes its pictures worse, as a learning rate does that is too high. Such a stage is not
suspected of hacking, since pictures that fall apart have all signs of a collapse.

Without a trend a run of ten stages with two monitors is suspected by sign 1 less than once in a thousand, and its
reward is said to have fallen less than once in a hundred (`tests/raydense/training/test_watch.py` counts both). A
suspicion is no proof: look at the pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raydense.core.messages import command
from raydense.core.statistics import is_far_below, known_rows
from raydense.core.types import FloatArray, GroupMeta, UnitReport
from raydense.files.locations import below
from raydense.records.stage_file import Entry, StageFile
from raydense.rewards.mixture import weighted_sum
from raydense.sections.rewards import RewardConfig
from raydense.training.normalising import StageScales

FILE = "watch.json"
IMAGES = "images/"
DIRECTIONS = {"images/saturation": 0, "images/entropy": -1, "images/similarity": 1}  # in which it collapses; 0: either
MONITOR = "reward/monitor/"
GENTLER = "start again with a lower train.lr or fewer stage.steps"
FEWEST = 5  # groups a stage whose means Welch's test tells apart; of fewer, their spread is known too badly


class StoppedByWatch(RuntimeError):
    """`reward.watch.stop` ended the run; the message has the signs."""


@dataclass(frozen=True)
class Sighting:
    """What a stage looks like: metrics, a line for each sign of hacking, and one for a fall."""

    values: Mapping[str, float]
    signs: tuple[str, ...]
    fall: str

    @property
    def lines(self) -> tuple[str, ...]:
        return (*(f"reward hacking suspected: {sign}" for sign in self.signs), *([self.fall] if self.fall else []))


class RewardWatch:
    """Remembers the run's stages in `watch.json`, so that a run that continues sees what an uncut one does.

    Args:
        scales: whose first stage's put a normalised mixture of all stages on one scale.
        root: the run directory.
    """

    def __init__(self, reward: RewardConfig, scales: StageScales, root: Path) -> None:
        self._reward, self._scales, self._file = reward, scales, StageFile(root / FILE)

    def look(self, stage: int, reports: Sequence[UnitReport]) -> Sighting:
        """Enters a collected stage and compares it with those before."""
        groups = [group for report in reports for group in report.groups]
        self._file[stage] = self._describe(groups)
        past = [self._file[earlier] for earlier in range(stage) if earlier in self._file]
        watch = self._reward.watch
        fall = find_fall(past, self._file[stage], watch.sigmas)
        signs = () if fall else find_signs(past, self._file[stage], watch.sigmas, watch.collapse)
        values = {name: entry["mean"] for name, entry in self._file[stage].items() if name.startswith(IMAGES)}
        values |= {"reward/hacking_suspected": float(bool(signs)), "reward/fallen": float(bool(fall))}
        return Sighting({**values, **self._scales.values(stage)}, signs, fall)

    def react(self, sighting: Sighting, title: str, say: Callable[[str], None], run: str) -> None:
        """Says what was seen. Raises: StoppedByWatch where there is something and the run is to stop for it."""
        for line in sighting.lines:
            say(f"{title}: {line}")
        if sighting.lines and self._reward.watch.stop:
            going_on = command("train", "--resume", run, "--set", "reward.watch.stop=false")
            raise StoppedByWatch(
                f"reward.watch.stop: {'; '.join(sighting.lines)}; look at {below(run, 'images')}, then take an earlier "
                f"checkpoint, or go on with: {going_on}"
            )

    def _describe(self, groups: Sequence[GroupMeta]) -> Entry:
        series: dict[str, list[float]] = {"reward": [self._mean_reward(group) for group in groups]}
        for monitor in self._reward.monitors:
            series[MONITOR + monitor.name] = [float(np.mean(group.monitors[monitor.name])) for group in groups]
        for name in groups[0].images:
            series[IMAGES + name] = [group.images[name] for group in groups]
        known = {name: known_rows(values) for name, values in series.items()}  # NaN: of a monitor that failed
        return {name: _moments(values) for name, values in known.items() if len(values)}

    def _mean_reward(self, group: GroupMeta) -> float:
        scorer = self._reward.scorer
        if scorer.kind != "mixture":
            return float(np.mean(group.rewards))
        weights = {component.scorer.name: component.weight for component in scorer.components}
        scores: dict[str, FloatArray] = {name: np.array(group.monitors[name], np.float32) for name in weights}
        return float(np.mean(weighted_sum(scores, weights, self._scales.of(0))))


def find_signs(past: Sequence[Entry], now: Entry, sigmas: float, collapse: float) -> tuple[str, ...]:
    """The signs of a stage, in words; entries are (mean, std between groups, groups) by name."""
    if not past:
        return ()
    signs = []
    for name in now:
        if name.startswith(MONITOR) and (sign := _reward_without(name, past, now, sigmas)):
            signs.append(sign)
        if name in DIRECTIONS and name in past[0] and (sign := _collapse(name, past[0], now, collapse)):
            signs.append(sign)
    return tuple(signs)


def find_fall(past: Sequence[Entry], now: Entry, sigmas: float) -> str:
    """What there is to say of a reward below the first stage's; entries as above."""
    if not past:
        return ""
    first, last = past[0]["reward"], now["reward"]
    if min(first["groups"], last["groups"]) < FEWEST:
        return ""
    away = _standard_errors(first, last)
    if not (away < 0 and is_far_below(away, _degrees_of_freedom(first, last), sigmas)):
        return ""
    return (
        f"the reward fell from {first['mean']:.4g} in the first stage to {last['mean']:.4g} ({away:+.1f} standard "
        f"errors): training makes the pictures worse; {GENTLER}"
    )


def _reward_without(name: str, past: Sequence[Entry], now: Entry, sigmas: float) -> str:
    known = [stage for stage in past if name in stage]
    if not known:
        return ""
    best = max(known, key=lambda stage: stage[name]["mean"])
    up, down = _standard_errors(best["reward"], now["reward"]), _standard_errors(best[name], now[name])
    if not (up > sigmas and down < -sigmas):
        return ""
    monitor = name.removeprefix(MONITOR)
    return (
        f"the reward rose from {best['reward']['mean']:.4g} to {now['reward']['mean']:.4g} ({up:+.1f} standard errors) "
        f"while {monitor} fell from {best[name]['mean']:.4g} to {now[name]['mean']:.4g} ({down:+.1f})"
    )


def _collapse(name: str, first: Entry, now: Entry, limit: float) -> str:
    spread = first[name]["std"]
    if not spread > 0:
        return ""
    moved = (now[name]["mean"] - first[name]["mean"]) / spread
    if (abs(moved) if DIRECTIONS[name] == 0 else moved * DIRECTIONS[name]) <= limit:
        return ""
    return (
        f"the pictures' {name.removeprefix(IMAGES)} went from {first[name]['mean']:.4g} to {now[name]['mean']:.4g} "
        f"({moved:+.1f} standard deviations between the first stage's groups)"
    )


def _standard_errors(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """The change in standard errors of the difference; 0 where a stage has a single group."""
    if min(before["groups"], after["groups"]) < 2:
        return 0.0
    error = math.sqrt(before["std"] ** 2 / before["groups"] + after["std"] ** 2 / after["groups"])
    change = after["mean"] - before["mean"]
    if error == 0:
        return math.copysign(math.inf, change) if change else 0.0
    return change / error


def _degrees_of_freedom(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """Of the difference of two means, by Welch and Satterthwaite."""
    squares = [(entry["std"] ** 2 / entry["groups"], entry["groups"] - 1) for entry in (before, after)]
    error = sum(square for square, _ in squares)
    return 1 / sum((square / error) ** 2 / free for square, free in squares) if error > 0 else math.inf


def _moments(table: NDArray[np.float64]) -> dict[str, float]:
    std = float(table.std(ddof=1)) if len(table) > 1 else 0.0
    return {"mean": float(table.mean()), "std": std, "groups": float(len(table))}
