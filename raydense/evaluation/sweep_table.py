"""What a sweep found: a row a setting, prompt set and judge, with 95 % intervals over the seeds; and its plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raydense.core.statistics import Interval, clustered_interval, mean_interval
from raydense.evaluation.sweep import Settings, Trial, changes_since, label
from raydense.records.scores import Paired, Scores, read_scores
from raydense.records.tables import Sheet, shown, write_csv, write_json


@dataclass(frozen=True)
class Outcome:
    """Scores of one setting over its finished seeds, under one judge, on one prompt set.

    gains: mean paired gain (same prompts, same noise) by seed.
    gain: their mean with its interval over the seeds: what another seed may give. NaN bounds for one seed alone.
    over_prompts: the same mean clustered by prompt: what other prompts may give these very LoRAs.
    difference: of the gains from those of the first setting, seed by seed; None with fewer than two in common.
    """

    settings: Settings
    prompts: str
    judge: str
    seeds: tuple[int, ...]
    before: float
    after: float
    gains: tuple[float, ...]
    gain: Interval
    over_prompts: Interval
    difference: Interval | None

    def as_dict(self) -> dict[str, Any]:
        return {
            "settings": dict(self.settings),
            "prompts": self.prompts,
            "judge": self.judge,
            "seeds": list(self.seeds),
            "before": self.before,
            "after": self.after,
            "gain_by_seed": list(self.gains),
            "gain": self.gain.as_dict(),
            "gain_over_prompts": self.over_prompts.as_dict(),
            "difference_from_first": self.difference.as_dict() if self.difference else None,
        }


def outcomes(trials: Sequence[Trial]) -> list[Outcome]:
    """Of all finished trials: the settings in their order, and each with its judges and prompt sets."""
    by_setting: dict[Settings, dict[int, Scores]] = {}
    for trial in trials:
        if trial.finished and (scores := read_scores(trial.directory)):
            by_setting.setdefault(trial.settings, {})[trial.seed] = scores
    found: list[Outcome] = []
    firsts: dict[tuple[str, str], dict[int, float]] = {}
    for settings, by_seed in by_setting.items():
        any_run = next(iter(by_seed.values()))
        for prompts, judges in any_run.judged.items():
            for judge in judges:
                tables = {seed: scores.judged[prompts][judge] for seed, scores in by_seed.items()}
                gains = {seed: float(paired.gain.mean()) for seed, paired in tables.items()}
                first = firsts.setdefault((prompts, judge), gains)
                found.append(_outcome(settings, prompts, judge, tables, gains, first))
    return found


def _outcome(
    settings: Settings,
    prompts: str,
    judge: str,
    tables: dict[int, Paired],
    gains: dict[int, float],
    first: dict[int, float],
) -> Outcome:
    shared = [seed for seed in gains if seed in first]
    return Outcome(
        settings,
        prompts,
        judge,
        tuple(gains),
        float(np.mean([paired.before.mean() for paired in tables.values()])),
        float(np.mean([paired.after.mean() for paired in tables.values()])),
        tuple(gains.values()),
        mean_interval(list(gains.values())),
        clustered_interval(np.concatenate([paired.gain for paired in tables.values()], axis=1)),
        mean_interval([gains[s] - first[s] for s in shared]) if gains is not first and len(shared) > 1 else None,
    )


def sheet(found: Sequence[Outcome]) -> Sheet:
    columns = (
        "setting",
        "prompts",
        "judge",
        "before",
        "after",
        "gain [95 % over seeds]",
        "[over prompts]",
        "by seed",
        "difference from the first",
    )
    rows = tuple(
        (
            label(o.settings),
            o.prompts,
            o.judge,
            f"{o.before:.4f}",
            f"{o.after:.4f}",
            shown(o.gain, "+"),
            f"[{o.over_prompts.low:+.4f}, {o.over_prompts.high:+.4f}]",
            ", ".join(f"{gain:+.3f}" for gain in o.gains),
            shown(o.difference, "+") if o.difference else "",
        )
        for o in found
    )
    return Sheet("gain in mean score, same prompts and noise before and after", columns, rows, names=3)


def write_results(out: Path, trials: Sequence[Trial]) -> Sheet:
    """Writes sweep.json, sweep.csv, sweep.md and sweep.png into `out`; returns the table."""
    found = outcomes(trials)
    table = sheet(found)
    missing = [trial.name for trial in trials if not trial.finished]
    facts = {"missing": missing, "accepted_changes": changes_since(trials)}
    write_json(out / "sweep.json", {"outcomes": [o.as_dict() for o in found], **facts})
    write_csv(out / "sweep.csv", [_flat(o) for o in found])
    (out / "sweep.md").write_text(table.markdown(), encoding="utf-8")
    plot(out / "sweep.png", found)
    return table


def _flat(o: Outcome) -> dict[str, Any]:
    return {
        **dict(o.settings),
        "prompts": o.prompts,
        "judge": o.judge,
        "seeds": len(o.seeds),
        "before": o.before,
        "after": o.after,
        "gain": o.gain.mean,
        "gain_low": o.gain.low,
        "gain_high": o.gain.high,
        "over_prompts_low": o.over_prompts.low,
        "over_prompts_high": o.over_prompts.high,
    }


def plot(path: Path, found: Sequence[Outcome]) -> None:
    """A panel a judge and prompt set: gains along the first key of the grid, a colour for the rest of the setting.

    Bars are intervals over the seeds, or over the prompts where there is one seed; dashes are the seeds.
    """
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False}):  # a name with two $ is no formula
        _plot(path, found)


def _plot(path: Path, found: Sequence[Outcome]) -> None:
    from matplotlib.figure import Figure

    judges, sets = (list(dict.fromkeys(getattr(o, name) for o in found)) for name in ("judge", "prompts"))
    figure = Figure(figsize=(1.5 + 4 * len(sets), 1 + 3 * len(judges)), layout="constrained")
    panels = figure.subplots(len(judges), len(sets), squeeze=False, sharex=True, sharey="row")
    for row, judge in enumerate(judges):
        for column, prompts in enumerate(sets):
            panel = panels[row][column]
            _draw(panel, [o for o in found if (o.judge, o.prompts) == (judge, prompts)])
            panel.set_title(f"{judge}, {prompts} prompts")
        panels[row][0].set_ylabel("gain, 95 % interval")
    for panel in panels[-1]:
        panel.set_xlabel(found[0].settings[0][0] if found[0].settings else "")
    if len(found[0].settings) > 1:
        panels[0][-1].legend(fontsize="small")
    figure.savefig(path, dpi=120)


def _draw(panel: Any, found: Sequence[Outcome]) -> None:
    places = list(dict.fromkeys(o.settings[:1] for o in found))
    series = list(dict.fromkeys(o.settings[1:] for o in found))
    for index, rest in enumerate(series):
        shift, colour = 0.5 * ((index + 0.5) / len(series) - 0.5), f"C{index}"
        own = [o for o in found if o.settings[1:] == rest]
        x = np.array([places.index(o.settings[:1]) + shift for o in own])
        intervals = [o.gain if len(o.gains) > 1 else o.over_prompts for o in own]
        low, high = (np.array([abs(getattr(i, end) - i.mean) for i in intervals]) for end in ("low", "high"))
        panel.errorbar(x, [o.gain.mean for o in own], yerr=[low, high], fmt="o", color=colour, label=label(rest),
                       capsize=4)  # fmt: skip
        for place, o in zip(x, own, strict=True):
            panel.plot([place] * len(o.gains), o.gains, "_", color=colour, alpha=0.6)
    panel.axhline(0, color="grey", linewidth=0.8)
    panel.set_xticks(range(len(places)), [place[0][1] if place else "as configured" for place in places])
