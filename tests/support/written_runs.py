"""Finished runs that were written, not trained: what a sweep's tables read of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Gains = Mapping[str, float]  # by prompt set


def write_run(
    run: Path,
    gains: Gains,
    *,
    last_step: Gains | None = None,
    rows: Mapping[str, Mapping[str, int | None]] | None = None,
    judge: str = "clip",
    prompts: tuple[str, ...] = ("a cat", "a dog"),
    judged: Mapping[int, Gains] | None = None,
) -> None:
    """A run whose mean gains are these, on two prompts with two pictures each.

    Args:
        last_step: of the last step's weights, in a run whose result is their average.
        rows: of the network, by role and kind.
        judged: gains that were judged during training, by gradient step.
    """

    def row(name: str, index: int) -> dict[str, Any]:
        before = [0.2 + 0.1 * index, 0.3]
        scores = {"before": before, "after": _more(before, gains[name])}
        return {judge: scores | ({} if last_step is None else {"last_step": _more(before, last_step[name])})}

    run.mkdir(parents=True, exist_ok=True)
    scores = {name: {f"{name}: {p}": row(name, index) for index, p in enumerate(prompts)} for name in gains}
    (run / "scores.json").write_text(json.dumps(scores))
    lines = [
        {"kind": "evaluation", "stage": 0, "step": step, **{f"evaluate/{s}/{judge}": 0.275 + g for s, g in by.items()}}
        for step, by in ({0: dict.fromkeys(gains, 0.0), **judged} if judged else {}).items()
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "summary.json").write_text(json.dumps({"network_rows": rows} if rows else {}))


def _more(values: list[float], gain: float) -> list[float]:
    return [value + gain for value in values]
