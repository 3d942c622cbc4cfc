"""summary.json and scores.json: what a finished run says about itself."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from raydense.config import Config
from raydense.planning.compute import NetworkRows
from raydense.records.scores import Judgement
from raydense.records.tables import Sheet
from raydense.training.judging import paired_gains

PACKAGES = ("raydense", "ray", "torch", "diffusers", "peft", "transformers", "numpy")


def read_summary(run: Path) -> Mapping[str, Any] | None:
    """What a finished run wrote; None before."""
    path = run / "summary.json"
    content: Mapping[str, Any] | None = json.loads(path.read_text("utf-8")) if path.is_file() else None
    return content


def summarise(
    config: Config,
    before: Judgement | None,
    after: Judgement | None,
    seconds: Mapping[str, float],
    wall_s: float,
    runner: str,
    rows: NetworkRows,
) -> dict[str, Any]:
    """Scores before and after with their paired gain (where they were judged), times, work, versions and the seed."""
    scores = paired_gains(before, after) if before and after else {}
    return {
        "name": config.name,
        "seed": config.seed,
        "runner": runner,
        "scorer": config.reward.scorer.name,
        "reward": scores.pop(config.reward.scorer.name, {}),
        "monitors": scores,
        "wall_s": round(wall_s, 2),
        "phases_s": {name: round(value, 2) for name, value in seconds.items()},
        "network_rows": rows.as_dict(),
        "versions": versions(),
    }


def gain_sheet(summary: Mapping[str, Any]) -> Sheet:
    """Scores before and after with the paired gain and its standard error, for the end of a run.

    The prompts are the sample; of one prompt, its pictures are.
    """
    rows, sample = [], "clustered by prompt"
    judges = {f"{summary['scorer']} (trained on)": summary["reward"], **summary["monitors"]}
    for judge, by_set in judges.items():
        for prompts, row in by_set.items():
            error = row["gain"]["se_by_prompt"]
            if error is None and (error := row["gain"]["se"]) is not None:
                sample = "clustered by prompt; of one prompt alone, over its pictures"
            gain = f"{row['gain']['mean']:+.4f}" + ("" if error is None else f" ± {error:.4f}")
            rows.append((judge, prompts, f"{row['before']['mean']:.4f}", f"{row['after']['mean']:.4f}", gain))
    title = f"{summary['name']}, seed {summary['seed']}: mean score, before and after"
    return Sheet(
        f"{title} (± standard error, {sample})", ("judge", "prompts", "before", "after", "gain"), tuple(rows), 2
    )


def versions() -> dict[str, str]:
    """Of Python and of the packages that make a run's numbers."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
