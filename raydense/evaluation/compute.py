"""What the arms of a sweep compute: rows of the network, as a run's summary counts them; its judging is left out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from raydense.config import Config
from raydense.training.summary import read_summary

Counts = Mapping[str, float]  # rows by kind, such as `learner backward`; empty where they are not known
CLOSE = 0.01  # arms that differ by no more than this share are at equal compute


def read_counts(run: Path) -> Counts:
    """Of a finished run; empty if it did not count all of them, as runs of earlier code did not."""
    by_role = (read_summary(run) or {}).get("network_rows") or {}
    counts = {f"{role} {kind}".replace("_", " "): rows for role in by_role for kind, rows in by_role[role].items()}
    training = {name: rows for name, rows in counts.items() if not name.startswith("judging")}
    return {} if None in training.values() else training


def mean_counts(runs: Sequence[Counts]) -> Counts:
    """Of an arm's seeds; empty if one is."""
    if not all(runs):
        return {}
    return {kind: float(np.mean([counts.get(kind, 0) for counts in runs])) for kind in runs[0]}


def unequal(ours: Counts, theirs: Counts) -> list[str]:
    """A note if one arm computed over 1 % more rows of a kind; none where that is not known."""
    kinds = [kind for kind in {**ours, **theirs} if not _close(ours.get(kind, 0), theirs.get(kind, 0))]
    if not (ours and theirs and kinds):
        return []
    shown = ", ".join(f"{kind} {ours.get(kind, 0):,.0f} against {theirs.get(kind, 0):,.0f}" for kind in kinds)
    return [f"not at equal compute: rows of the network: {shown}"]


def rows_until(step: float, counts: Counts, config: Config) -> float:
    """All rows up to a gradient step: the learner's grow with the steps, the sampler's with the stages begun."""
    learned = step / (config.stage.count * config.stage.steps)
    begun = math.ceil(step / config.stage.steps) / config.stage.count
    return sum(rows * (learned if kind.startswith("learner") else begun) for kind, rows in counts.items())


def _close(one: float, other: float) -> bool:
    return abs(one - other) <= CLOSE * min(one, other)
