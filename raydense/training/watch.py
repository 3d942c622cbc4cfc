"""The hacking watch: whether the trained reward rises while what it stands for does not.

Two signs, looked for whenever a stage is collected. Everything is a mean over the stage's groups, whose standard error
is their standard deviation over √groups.

1. *Reward up, monitor down.* Against the earlier stage where the monitor stood highest, the monitor has fallen and the
   reward has risen, each by more than `reward.watch.sigmas` standard errors of the difference. The highest, not the
   first, because a monitor that first rises with the reward and then turns is the usual course of hacking.
2. *Pictures collapse.* Saturation has moved either way, entropy has fallen, or the similarity of the pictures of one
   group has risen, by more than `reward.watch.collapse` standard deviations between the groups of the first stage, so
   that the average group looks unlike nearly all groups of the base model. Here the size counts and not the error:
   any training moves these a little, and a long stage would make a little significant.

Without a trend a run of ten stages with two monitors is suspected by sign 1 less than once in a thousand
(`tests/raydense/training/test_watch.py` counts). A suspicion is no proof: look at the pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raydense.core.statistics import known_rows
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


class HackingSuspected(RuntimeError):
    """`reward.watch.stop` ended the run; the message has the signs."""


@dataclass(frozen=True)
class Sighting:
    """What a stage looks like: metrics, and a line for each sign of hacking."""

    values: Mapping[str, float]
    signs: tuple[str, ...]


class HackingWatch:
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
        signs = find_signs(past, self._file[stage], watch.sigmas, watch.collapse)
        values = {name: entry["mean"] for name, entry in self._file[stage].items() if name.startswith(IMAGES)}
        values |= {"reward/hacking_suspected": float(bool(signs)), **self._scales.values(stage)}
        return Sighting(values, signs)

    def react(self, sighting: Sighting, title: str, say: Callable[[str], None], run: str) -> None:
        """Says each sign. Raises: HackingSuspected where there is one and the configuration wants the run to stop."""
        for sign in sighting.signs:
            say(f"{title}: reward hacking suspected: {sign}")
        if sighting.signs and self._reward.watch.stop:
            raise HackingSuspected(
                f"reward.watch.stop: reward hacking suspected: {'; '.join(sighting.signs)}; look at "
                f"{below(run, 'images')}, then take an earlier checkpoint, or go on with --resume {run} "
                "--set reward.watch.stop=false"
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


def _moments(table: NDArray[np.float64]) -> dict[str, float]:
    std = float(table.std(ddof=1)) if len(table) > 1 else 0.0
    return {"mean": float(table.mean()), "std": std, "groups": float(len(table))}
