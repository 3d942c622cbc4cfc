"""summary.json and scores.json: what a finished run says about itself."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from raydense.config import Config
from raydense.core.statistics import is_below_zero
from raydense.files.durable import json_if_there
from raydense.planning.compute import NetworkRows
from raydense.records.scores import Judgement
from raydense.records.tables import Sheet
from raydense.training.judging import paired_gains
from raydense.training.watch import GENTLER

CERTAIN = 3.0  # sigmas of the test by which a score has fallen
PACKAGES = ("raydense", "ray", "torch", "diffusers", "peft", "transformers", "numpy")


def read_summary(run: Path) -> Mapping[str, Any] | None:
    """What a finished run wrote; None before."""
    content: Mapping[str, Any] | None = json_if_there(run / "summary.json")
    return content


def summarise(
    config: Config,
    before: Judgement | None,
    after: Judgement | None,
    seconds: Mapping[str, float],
    wall_s: float,
    runner: str,
    rows: NetworkRows,
    last_step: Judgement | None = None,
) -> dict[str, Any]:
    """Scores before and after with their paired gain (where they were judged), times, work, versions and the seed.

    Args: last_step: of its weights, where `after` is of the average.
    """
    name = config.reward.scorer.name
    fell = [] if before is None or after is None else fallen(before, after, name)
    return {
        "name": config.name,
        "seed": config.seed,
        "runner": runner,
        "scorer": name,
        **_gains(name, before, after),
        "worse_on": fell,
        **({} if config.train.ema is None else {"last_step": _gains(name, before, last_step)}),
        "wall_s": round(wall_s, 2),
        "phases_s": {name: round(value, 2) for name, value in seconds.items()},
        "network_rows": rows.as_dict(),
        "versions": versions(),
    }


def _gains(scorer: str, before: Judgement | None, after: Judgement | None) -> dict[str, Any]:
    """Paired gains of the scorer, and of the monitors by name."""
    scores = paired_gains(before, after) if before and after else {}
    return {"reward": scores.pop(scorer, {}), "monitors": scores}


def fallen(before: Judgement, after: Judgement, scorer: str) -> list[str]:
    """Names of the prompt sets on which its score certainly fell; the prompts are the sample, as in `gain_sheet`."""
    both = {name: (scores[scorer], after.scores[name][scorer]) for name, scores in before.scores.items()}
    return [name for name, (first, then) in both.items() if is_below_zero(then.astype(float) - first, CERTAIN)]


def losses(summary: Mapping[str, Any]) -> list[str]:
    """A line for each prompt set on which training made the score worse."""
    lines = []
    for prompts in summary.get("worse_on", ()):  # none in a summary of earlier code
        gain = summary["reward"][prompts]["gain"]
        lines.append(
            f"the LoRA is worse than what training began with: {summary['scorer']} on {prompts} prompts "
            f"{gain['mean']:+.4g} ± {_error(gain)[0]:.2g}; {GENTLER}"
        )
    return lines


def gain_sheet(summary: Mapping[str, Any]) -> Sheet:
    """Scores before and after with the paired gain and its standard error, for the end of a run.

    The prompts are the sample; of one prompt, its pictures are. A run with an average shows the last step's, too.
    """
    scorer, averages = summary["scorer"], "last_step" in summary
    by_weights = {"averaged": summary, "last step": summary["last_step"]} if averages else {"": summary}
    found = {weights: _by_judge(gains, scorer) for weights, gains in by_weights.items()}
    keys = dict.fromkeys((j, p) for by_judge in found.values() for j, by_set in by_judge.items() for p in by_set)
    rows, sample = [], "clustered by prompt"
    for judge, prompts in keys:
        for weights, by_judge in found.items():
            row = by_judge.get(judge, {}).get(prompts)
            if row is None:  # a monitor failed
                continue
            error, of_one_prompt = _error(row["gain"])
            if of_one_prompt:
                sample = "clustered by prompt; of one prompt alone, over its pictures"
            gain = f"{row['gain']['mean']:+.4f}" + ("" if error is None else f" ± {error:.4f}")
            names = (judge, prompts, weights) if averages else (judge, prompts)
            rows.append((*names, f"{row['before']['mean']:.4f}", f"{row['after']['mean']:.4f}", gain))
    title = f"{summary['name']}, seed {summary['seed']}: mean score, before and after (± standard error, {sample})"
    columns = ("judge", "prompts", "weights") if averages else ("judge", "prompts")
    return Sheet(title, (*columns, "before", "after", "gain"), tuple(rows), len(columns))


def _error(gain: Mapping[str, Any]) -> tuple[float | None, bool]:
    """The standard error, clustered by prompt, and whether it is of one prompt alone, over its pictures."""
    if gain["se_by_prompt"] is not None:
        return gain["se_by_prompt"], False
    return gain["se"], gain["se"] is not None


def _by_judge(gains: Mapping[str, Any], scorer: str) -> dict[str, Any]:
    return {f"{scorer} (trained on)": gains["reward"], **gains["monitors"]}


def versions() -> dict[str, str]:
    """Of Python and of the packages that make a run's numbers."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
