"""The tables of a sweep: for a screen, as Markdown, JSON and a spreadsheet; and what has to be known to read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raydense.config import Config
from raydense.core.statistics import Interval
from raydense.evaluation.gain_figure import draw_gains
from raydense.evaluation.outcomes import Outcome, outcomes
from raydense.evaluation.sweep import Settings, Trial, changes_since, label, leading
from raydense.evaluation.sweep_plot import plot
from raydense.evaluation.until_decided import decision_notes
from raydense.files.durable import write_text
from raydense.records.tables import Sheet, shown, write_csv, write_json

FEW_SEEDS = 4  # whose gains a cell lists
DIFFERENCES = "difference of the gains, seed by seed [95 % over seeds]"
NEEDED = (
    "seeds needed: a paired t test at 5 %, two-sided, shows a difference of this size and spread in 80 % of cases with "
    "so many; size and spread are themselves known only as well as these seeds tell"
)


@dataclass(frozen=True)
class Results:
    """What there is to show: tables, lines below them, and the names of the files."""

    sheets: tuple[Sheet, ...]
    notes: tuple[str, ...]
    plots: tuple[str, ...] = ()


def write_results(
    out: Path,
    trials: Sequence[Trial],
    against: Settings | None = None,
    *,
    paired: bool = False,
) -> Results:
    """Writes sweep.json, sweep.csv, sweep.md and sweep.png into `out`; gain.svg too if runs were judged on the way.

    Args:
        against: the settings that the others are compared with; None: the first.
        paired: whether the table of differences is shown, in the plot too; the files for machines always have them.
    """
    found, count = outcomes(trials, against), leading([trial.settings for trial in trials])
    named = [_named(o, count) for o in found]
    pairs = [o for o in named if o.difference] if paired else []
    counted = any(o.rows for o in found)
    sheets = (
        *([settings_sheet(found, count)] if any(len(o.arm.settings) > count for o in found) else []),
        gain_sheet(named),
        *([compute_sheet(named)] if counted else []),
        *([difference_sheet(pairs)] if pairs else []),
    )
    results = Results(sheets, (*decision_notes(out), *_notes(named, pairs)))
    missing = [trial.name for trial in trials if not trial.finished]
    facts = {"missing": missing, "accepted_changes": changes_since(trials), "notes": results.notes}
    write_json(out / "sweep.json", {"outcomes": [o.as_dict() for o in found], **facts})
    keys = dict.fromkeys(key for trial in trials for key, _ in trial.settings)
    write_csv(out / "sweep.csv", [{**dict.fromkeys(keys, ""), **_flat(o)} for o in found])
    below = "".join(f"\n{note}\n" for note in results.notes)
    write_text(out / "sweep.md", "\n".join(sheet.markdown() for sheet in sheets) + below)
    plot(out / "sweep.png", named, paired=bool(pairs))
    arms: dict[str, list[tuple[Path, Config]]] = {}
    for trial in trials:
        if trial.finished:
            arms.setdefault(label(trial.settings[:count]), []).append((trial.directory, trial.config))
    drawn = draw_gains(out / "gain.svg", arms)
    return replace(results, plots=("sweep.png", *(["gain.svg"] if drawn else [])))


def settings_sheet(found: Sequence[Outcome], count: int) -> Sheet:
    """What each arm sets, where the tables name it by its first settings alone."""
    settings = dict.fromkeys(o.arm.settings for o in found)
    return Sheet(
        "settings", ("setting", "in full"), tuple((label(one[:count]), label(one)) for one in settings), names=2
    )


def gain_sheet(found: Sequence[Outcome]) -> Sheet:
    counted = any(o.rows for o in found)
    columns = ("before", "after", "gain [95 % over seeds]", "[over prompts]", "by seed")
    rows = tuple(
        (
            *_names(o, found),
            f"{o.before:.4f}",
            f"{o.after:.4f}",
            shown(o.gain, "+"),
            f"[{o.over_prompts.low:+.4f}, {o.over_prompts.high:+.4f}]",
            _by_seed(list(o.gains.values())),
            *([_count(sum(o.rows.values()))] if counted else []),
        )
        for o in found
    )
    names = _name_columns(found)
    return Sheet(
        "gain in mean score, same prompts and noise before and after",
        (*names, *columns, *(["network rows"] if counted else [])),
        rows,
        names=len(names),
    )


def compute_sheet(found: Sequence[Outcome]) -> Sheet:
    """A row a setting, a column a kind of rows."""
    kinds = list(dict.fromkeys(kind for o in found for kind in o.rows))
    by_setting = {o.arm.settings: o.rows for o in found}
    rows = tuple((label(s), *(_count(counts.get(kind, 0)) for kind in kinds)) for s, counts in by_setting.items())
    return Sheet("rows of the network in a run, judging left out, mean over the seeds", ("setting", *kinds), rows)


def difference_sheet(found: Sequence[Outcome]) -> Sheet:
    """Of the outcomes that have a difference."""
    rows = tuple(
        (
            *_names(o, found),
            d.against.name,
            shown(d.interval, "+"),
            d.verdict,
            f"{sum(value > 0 for value in d.by_seed.values())} of {len(d.by_seed)}",
            f"{d.sign_p:.3f}",
            f"{d.needed:,}" if d.needed else "–",
        )
        for o in found
        if (d := o.difference)
    )
    columns = ("against", "difference", "95 % says", "seeds above 0", "sign test p", "seeds needed")
    names = _name_columns(found)
    return Sheet(DIFFERENCES, (*names, *columns), rows, names=len(names) + 1)


def _named(o: Outcome, count: int) -> Outcome:
    """The outcome of an arm that is named by its first settings."""
    d = o.difference
    short = replace(d, against=replace(d.against, settings=d.against.settings[:count])) if d else None
    return replace(o, arm=replace(o.arm, settings=o.arm.settings[:count]), difference=short)


def _notes(found: Sequence[Outcome], pairs: Sequence[Outcome]) -> list[str]:
    """What else a reader has to know."""
    unlike = [  # of the runs, whichever of their weights
        f"{label(o.arm.settings)} against {label(o.difference.against.settings)}: {note}"
        for o in found
        if o.difference
        for note in o.difference.notes
    ]
    several = (
        f"{len(pairs)} differences of 95 % each: where nothing differs, one in twenty still excludes 0; settle before "
        "the runs which one is to decide"
    )
    return [*dict.fromkeys(unlike), *([NEEDED] if pairs else []), *([several] if len(pairs) > 1 else [])]


def _name_columns(found: Sequence[Outcome]) -> tuple[str, ...]:
    return ("setting", *(["weights"] if any(o.arm.weights for o in found) else []), "prompts", "judge")


def _names(o: Outcome, found: Sequence[Outcome]) -> tuple[str, ...]:
    weights = [o.arm.weights or "–"] if any(other.arm.weights for other in found) else []
    return (label(o.arm.settings), *weights, o.prompts, o.judge)


def _count(rows: float) -> str:
    return f"{rows:,.0f}" if rows else "-"


def _by_seed(gains: Sequence[float]) -> str:
    """Each of a few; of many the ends."""
    if len(gains) <= FEW_SEEDS:
        return ", ".join(f"{gain:+.3f}" for gain in gains)
    return f"{len(gains)} seeds: {min(gains):+.3f} to {max(gains):+.3f}"


def _flat(o: Outcome) -> dict[str, Any]:
    """For a spreadsheet; empty cells where there is nothing."""
    difference = o.difference
    return {
        **dict(o.arm.settings),
        "weights": o.arm.weights,
        "prompts": o.prompts,
        "judge": o.judge,
        "seeds": len(o.gains),
        "before": o.before,
        "after": o.after,
        **_ends("gain", o.gain),
        "over_prompts_low": o.over_prompts.low,
        "over_prompts_high": o.over_prompts.high,
        "network_rows": sum(o.rows.values()) if o.rows else "",
        "against": difference.against.name if difference else "",
        "pairs": len(difference.by_seed) if difference else "",
        **_ends("difference", difference.interval if difference else None),
        "sign_test_p": difference.sign_p if difference else "",
        "seeds_needed": difference.needed if difference else "",
    }


def _ends(name: str, interval: Interval | None) -> dict[str, Any]:
    ends = interval.as_dict() if interval else {"mean": "", "low": "", "high": ""}
    return {name: ends["mean"], f"{name}_low": ends["low"], f"{name}_high": ends["high"]}
