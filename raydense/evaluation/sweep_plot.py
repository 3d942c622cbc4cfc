"""The plot of a sweep: gains, and differences where they are asked for, with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raydense.core.statistics import Interval
from raydense.evaluation.outcomes import Outcome
from raydense.evaluation.paired import Arm


@dataclass(frozen=True)
class _Point:
    arm: Arm
    by_seed: Mapping[int, float]
    interval: Interval


def plot(path: Path, found: Sequence[Outcome], *, paired: bool = False) -> None:
    """A panel a judge and prompt set: gains along the first key of the grid, a colour for the rest of the setting.

    Bars are intervals over the seeds, or over the prompts where there is one seed; dashes are the seeds.

    Args: paired: whether a row of differences follows each judge's gains.
    """
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False}):  # a name with two $ is no formula
        _plot(path, found, paired)


def _plot(path: Path, found: Sequence[Outcome], paired: bool) -> None:
    from matplotlib.figure import Figure

    judges, sets = (list(dict.fromkeys(getattr(o, name) for o in found)) for name in ("judge", "prompts"))
    rows = [(judge, differs) for judge in judges for differs in ((False, True) if paired else (False,))]
    figure = Figure(figsize=(1.5 + 4 * len(sets), 1 + 3 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), len(sets), squeeze=False, sharex=True, sharey="row")
    places = list(dict.fromkeys(o.arm.settings[:1] for o in found))
    series = list(dict.fromkeys(_rest(o.arm) for o in found))
    for row, (judge, differs) in enumerate(rows):
        for column, prompts in enumerate(sets):
            own = [o for o in found if (o.judge, o.prompts) == (judge, prompts)]
            points = [_difference(o) for o in own if o.difference] if differs else [_gain(o) for o in own]
            _draw(panels[row][column], points, places, series)
            panels[row][column].set_title(f"{judge}, {prompts} prompts")
        panels[row][0].set_ylabel("difference, seed by seed, 95 %" if differs else "gain, 95 % interval")
    for panel in panels[-1]:
        panel.set_xlabel(found[0].arm.settings[0][0] if found[0].arm.settings else "")
    if len(series) > 1:
        panels[0][-1].legend(fontsize="small")
    figure.savefig(path, dpi=120)


def _rest(arm: Arm) -> Arm:
    return Arm(arm.settings[1:], arm.weights)


def _gain(o: Outcome) -> _Point:
    return _Point(o.arm, o.gains, o.gain if len(o.gains) > 1 else o.over_prompts)


def _difference(o: Outcome) -> _Point:
    assert o.difference
    return _Point(o.arm, o.difference.by_seed, o.difference.interval)


def _draw(panel: Any, points: Sequence[_Point], places: Sequence[Any], series: Sequence[Arm]) -> None:
    for index, rest in enumerate(series):
        shift, colour = 0.5 * ((index + 0.5) / len(series) - 0.5), f"C{index}"
        own = [point for point in points if _rest(point.arm) == rest]
        x = np.array([places.index(point.arm.settings[:1]) + shift for point in own])
        intervals = [point.interval for point in own]
        low, high = (np.array([abs(getattr(i, end) - i.mean) for i in intervals]) for end in ("low", "high"))
        panel.errorbar(x, [i.mean for i in intervals], yerr=[low, high], fmt="o", color=colour,
                       label=rest.name if rest.settings or len(series) == 1 else rest.weights or "not averaged",
                       capsize=4)  # fmt: skip
        for place, point in zip(x, own, strict=True):
            panel.plot([place] * len(point.by_seed), list(point.by_seed.values()), "_", color=colour, alpha=0.6)
    panel.axhline(0, color="grey", linewidth=0.8)
    panel.set_xticks(range(len(places)), [place[0][1] if place else "as configured" for place in places])
