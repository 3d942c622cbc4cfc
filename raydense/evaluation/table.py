"""The paper's table: a row a model, a column a style or prompt set; means, and win-rates against the base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raydense.core.statistics import Interval, clustered_interval, known_rows, win_rate
from raydense.core.types import FloatArray
from raydense.evaluation.candidates import BASE
from raydense.evaluation.evaluate import Evaluation
from raydense.records.scores import Judgement
from raydense.records.tables import Sheet, shown, write_csv, write_json
from raydense.sections.rewards import RewardConfig
from raydense.wiring.chains import judged_by

MEAN = "mean"  # of all prompts of the styles


@dataclass(frozen=True)
class Cell:
    """One model, scorer and column.

    prompts, pictures: that have a score. gain, wins: paired (same prompt, same noise) against the base; None for it.
    """

    model: str
    scorer: str
    column: str
    prompts: int
    pictures: int
    mean: Interval
    gain: Interval | None
    wins: Interval | None


def cells(evaluation: Evaluation) -> list[Cell]:
    """Of every model, scorer and column; of styles, also of all their prompts together."""
    found = []
    scorers = list(next(iter(evaluation.judgements[BASE].scores.values())))
    for model, judgement in evaluation.judgements.items():
        for scorer in scorers:
            ours = _columns(evaluation, judgement, scorer)
            theirs = _columns(evaluation, evaluation.judgements[BASE], scorer)
            for column, scores in ours.items():
                paired = None if model == BASE else (scores, theirs[column])
                found.append(_cell(model, scorer, column, scores, paired))
    return found


def _columns(evaluation: Evaluation, judgement: Judgement, scorer: str) -> dict[str, FloatArray]:
    by_column = {column: by[scorer] for column, by in judgement.scores.items()}
    if evaluation.columns.are_styles:
        by_column[MEAN] = np.concatenate(list(by_column.values()))
    return by_column


def _cell(
    model: str, scorer: str, column: str, scores: FloatArray, paired: tuple[FloatArray, FloatArray] | None
) -> Cell:
    gain = wins = None
    if paired:
        ours, theirs = paired
        gain, wins = clustered_interval(ours.astype(np.float64) - theirs), win_rate(ours, theirs)
    known = known_rows(scores)
    return Cell(model, scorer, column, len(known), known.size, clustered_interval(known), gain, wins)


def sheets(evaluation: Evaluation) -> list[Sheet]:
    """Two tables a scorer: mean scores, and win-rates against the base in per cent."""
    found, result = cells(evaluation), []
    columns = tuple(dict.fromkeys(cell.column for cell in found))
    for scorer in dict.fromkeys(cell.scorer for cell in found):
        own = [cell for cell in found if cell.scorer == scorer]
        title, scale = _title(evaluation.config.reward, scorer)
        models = tuple(dict.fromkeys(cell.model for cell in own))
        means = {(c.model, c.column): shown(_scaled(c.mean, scale)) for c in own}
        wins = {(c.model, c.column): _per_cent(c.wins) for c in own if c.wins}
        rows = tuple((model, *(means[model, column] for column in columns)) for model in models)
        result.append(Sheet(f"{title}: mean score [95 %, clustered by prompt]", ("model", *columns), rows))
        rows = tuple((m, *(wins[m, column] for column in columns)) for m in models if m != BASE)
        if rows:
            result.append(
                Sheet(f"{title}: wins against the base, % [95 %, clustered by prompt]", ("model", *columns), rows)
            )
    return result


def _title(reward: RewardConfig, name: str) -> tuple[str, float]:
    """The scorer's name and the scale of its table: HPSv2's versions differ, and papers show 100 times its cosine."""
    versions = {judge.name: judge.version for judge in reward.judges if judge.kind == "hpsv2"}
    return (f"{name} {versions[name]} (x 100)", 100.0) if name in versions else (name, 1.0)


def _per_cent(interval: Interval) -> str:
    return shown(_scaled(interval, 100.0), digits=1)


def _scaled(interval: Interval, scale: float) -> Interval:
    return Interval(scale * interval.mean, scale * interval.low, scale * interval.high)


def write_evaluation(out: Path, evaluation: Evaluation) -> None:
    """Writes evaluation.json (with every single score), evaluation.csv and evaluation.md into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    found = cells(evaluation)
    config = evaluation.config
    write_json(
        out / "evaluation.json",
        {
            "base_model": config.policy.model,
            "revision": config.policy.revision,
            "seed": config.seed,
            "steps": judged_by(config).as_dict(),
            "guidance_scale": config.sampler.guidance_scale,
            "images_per_prompt": evaluation.images_per_prompt,
            "scorers": config.reward.model_dump(mode="json"),
            "normalisation": {name: {"mean": mean, "std": std} for name, mean, std in evaluation.scales},
            "accepted_changes": list(evaluation.accepted),
            "results": [_as_dict(cell) for cell in found],
            "prompts": {column: list(prompts) for column, prompts in evaluation.columns.prompts.items()},
            "scores": {model: judgement.as_lists() for model, judgement in evaluation.judgements.items()},
        },
    )
    write_csv(out / "evaluation.csv", [_flat(cell) for cell in found])
    (out / "evaluation.md").write_text("\n".join(sheet.markdown() for sheet in sheets(evaluation)), encoding="utf-8")


def _as_dict(cell: Cell) -> dict[str, Any]:
    return {k: v.as_dict() if isinstance(v, Interval) else v for k, v in cell.__dict__.items()}


def _flat(cell: Cell) -> dict[str, Any]:
    row: dict[str, Any] = {k: v for k, v in cell.__dict__.items() if k not in ("mean", "gain", "wins")}
    for name in ("mean", "gain", "wins"):
        interval = getattr(cell, name)
        ends = (interval.mean, interval.low, interval.high) if interval else ("", "", "")
        row |= dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))
    return row
