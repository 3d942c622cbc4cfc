"""Gain over compute: a line an arm, its band over the seeds, from what runs judged while they trained. SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydense.config import Config
from raydense.core.statistics import Interval, mean_interval
from raydense.evaluation.compute import Counts, mean_counts, read_counts, rows_until
from raydense.files.durable import replacing
from raydense.records.metrics import read_rows
from raydense.records.run_dir import RunDirectory

Panel = tuple[str, str]  # judge and prompt set
Points = Mapping[float, float]  # the gain, by gradient steps
Line = Mapping[float, Interval]  # by compute or by gradient steps
STYLE: dict[Any, Any] = {"text.parse_math": False, "svg.fonttype": "path", "svg.hashsalt": "gain", "font.size": 10}


@dataclass(frozen=True)
class _Run:
    """gains: by panel and gradient step. rows: of the network in all; empty where they were not counted."""

    gains: Mapping[Panel, Points]
    rows: Counts
    config: Config


def draw_gains(path: Path, arms: Mapping[str, Sequence[tuple[Path, Config]]]) -> bool:
    """Writes the figure of finished runs, a panel a judge and prompt set; the same runs give the same bytes.

    Along rows of the network where every run counted them, else along gradient steps.

    Args: arms: by name, each with the directories of its seeds and their configuration.
    Returns: whether there was anything to draw: no run without `evaluate.every_steps` has more than its ends.
    """
    runs = {name: [_read(*run) for run in of] for name, of in arms.items()}
    every = [run for of in runs.values() for run in of]
    counted = bool(every) and all(run.rows for run in every)
    panels: dict[Panel, dict[str, Line]] = {}
    for name, of in runs.items():
        for panel in dict.fromkeys(panel for run in of for panel in run.gains):
            judged = [run for run in of if panel in run.gains]
            drawn = f"{name} ({len(judged)} seed{'s' * (len(judged) > 1)})"
            panels.setdefault(panel, {})[drawn] = _line(judged, panel, counted)
    if not panels:
        return False
    _paint(path, panels, "rows of the network, forward and backward" if counted else "gradient steps")
    return True


def _line(runs: Sequence[_Run], panel: Panel, counted: bool) -> Line:
    """An arm's gains, at the mean of its seeds' compute: what a batch draws twice is computed once, so seeds differ."""
    rows, config = mean_counts([run.rows for run in runs]), runs[0].config
    gains = band([run.gains[panel] for run in runs])
    return {rows_until(step, rows, config) if counted else step: gain for step, gain in gains.items()}


def band(curves: Sequence[Points]) -> dict[float, Interval]:
    """Mean gain and its 95 % interval over the seeds, where every seed was judged."""
    shared = [step for step in curves[0] if all(step in curve for curve in curves)]
    return {step: mean_interval([curve[step] for curve in curves]) for step in sorted(shared)}


def _read(root: Path, config: Config) -> _Run:
    by_step: dict[Panel, dict[float, float]] = {}
    for row in read_rows(RunDirectory(root).metrics):
        for key in row if row["kind"] == "evaluation" else ():
            if key.startswith("evaluate/"):
                _, prompts, judge = key.split("/", 2)
                by_step.setdefault((judge, prompts), {})[row["step"]] = row[key]
    gains = {
        panel: {step: score - scores[0] for step, score in scores.items()}
        for panel, scores in by_step.items()
        if 0 in scores and len(scores) > 2  # with the ends alone there is no curve
    }
    return _Run(gains, read_counts(root), config)


def _paint(path: Path, panels: Mapping[Panel, Mapping[str, Line]], axis: str) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(1.2 + 4.6 * len(panels), 3.6), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for place, ((judge, prompts), arms) in zip(axes, panels.items(), strict=True):
            for index, (name, line) in enumerate(arms.items()):
                _draw(place, name, line, f"C{index}")
            place.axhline(0, color="grey", linewidth=0.8)
            place.set_title(f"{judge}, {prompts} prompts")
            place.set_xlabel(axis)
            place.legend(fontsize="small")
        axes[0].set_ylabel("gain; band: 95 % over seeds")
        with replacing(path) as partial:
            figure.savefig(partial, format="svg", metadata={"Date": None, "Creator": None})


def _draw(place: Any, name: str, points: Line, colour: str) -> None:
    x = list(points)
    place.plot(x, [i.mean for i in points.values()], color=colour, marker="o", markersize=3, label=name)
    place.fill_between(
        x, [i.low for i in points.values()], [i.high for i in points.values()], color=colour, alpha=0.18, linewidth=0
    )
