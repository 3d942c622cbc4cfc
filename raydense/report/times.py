"""Where the time went, and how fast each stage was."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from matplotlib.ticker import MaxNLocator

from raydense.report.run_data import RunData
from raydense.report.svg import MUTED, SERIES, Figure, draw

RATES = {"throughput/images_per_s": "Pictures a second", "throughput/steps_per_s": "Gradient steps a second"}


def time_figures(run: RunData) -> Iterator[Figure]:
    seconds = run.phase_seconds()
    if seconds:
        totals = phase_totals(run)
        yield draw(
            "phases",
            "Wall time by stage",
            "What is before a stage's work, such as judging the base model, counts to it; after the last: judging.",
            "Stacked bars of wall time by stage. In all: "
            + ", ".join(f"{n} {s:.0f} s" for n, s in totals.items())
            + ".",
            partial(_paint_phases, seconds=seconds, names=list(totals)),
        )
    for index, (name, title) in enumerate(RATES.items()):
        rates = [(row["stage"] + 1, row[name]) for row in run.events("phase") if row.get(name)]
        if rates:
            low, high = min(rate for _, rate in rates), max(rate for _, rate in rates)
            yield draw(
                name.replace("/", "-"),
                title,
                "Of each stage; a stage that a run continued has a point for each of its processes.",
                f"{title} by stage: between {low:.3g} and {high:.3g}.",
                partial(_paint_rates, rates=rates, colour=SERIES[index]),
            )


def phase_totals(run: RunData) -> dict[str, float]:
    """Seconds by phase, the longest first."""
    totals: dict[str, float] = {}
    for by_phase in run.phase_seconds().values():
        for name, value in by_phase.items():
            totals[name] = totals.get(name, 0) + value
    return dict(sorted(totals.items(), key=lambda item: -item[1]))


def _paint_phases(axes: Any, seconds: dict[int, dict[str, float]], names: list[str]) -> None:
    stages = sorted(seconds)
    bottom = [0.0] * len(stages)
    scale, unit = (3600, "hours") if max(sum(s.values()) for s in seconds.values()) > 7200 else (1, "seconds")
    for name, colour in zip(names, SERIES, strict=False):
        heights = [seconds[stage].get(name, 0) / scale for stage in stages]
        axes.bar([stage + 1 for stage in stages], heights, bottom=bottom, color=colour, width=0.7, label=name)
        bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
    axes.set_xlabel("stage")
    axes.set_ylabel(unit)
    axes.grid(visible=False, axis="x")
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, handlelength=0.9)


def _paint_rates(axes: Any, rates: list[tuple[int, float]], colour: str) -> None:
    axes.plot(*zip(*rates, strict=True), color=colour, marker="o", markersize=3.5)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("stage", color=MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
