"""`raydense compare`: what differs between runs, in their settings and in what came out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydense.config import Config, ConfigError, flat_settings, load_run_config
from raydense.core.statistics import Interval, clustered_interval
from raydense.records.metrics import read_rows
from raydense.records.run_dir import RunDirectory
from raydense.records.scores import Paired, Scores, read_scores
from raydense.records.tables import Sheet, shown

SHOWN_STEP = ("loss", "pair_accuracy", "log_ratio/clip_fraction", "grad_norm")
SHOWN_STAGE = ("reward/mean", "reward/std_within")


@dataclass(frozen=True)
class Compared:
    """One run. scores: None before it has finished."""

    name: str
    config: Config
    scores: Scores | None
    stage: dict[str, Any]  # its last rows of metrics, empty before the first
    step: dict[str, Any]


def read_runs(runs: Sequence[Path]) -> list[Compared]:
    """Raises: ConfigError for what is no run."""
    names = [run.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run) for run in runs]
    return [_read(run, name) for run, name in zip(runs, names, strict=True)]


def _read(run: Path, name: str) -> Compared:
    directory = RunDirectory(run)
    if not directory.config_file.is_file():
        raise ConfigError(f"{run} holds no config.yaml; give the directories of runs")
    last: dict[str, dict[str, Any]] = {row["kind"]: row for row in read_rows(directory.metrics)}
    config = load_run_config(directory.config_file)
    return Compared(name, config, read_scores(run), last.get("stage", {}), last.get("step", {}))


def differences(runs: Sequence[Compared]) -> dict[str, list[Any]]:
    """Settings that are not the same in all, with the value in each run (None where it has no such setting)."""
    flat = [flat_settings(run.config) for run in runs]
    keys = sorted({key for settings in flat for key in settings})
    values = {key: [settings.get(key) for settings in flat] for key in keys}
    return {key: of for key, of in values.items() if any(value != of[0] for value in of)}


@dataclass(frozen=True)
class ScoreRow:
    """One judge on one prompt set: after and gain by run, None where a run has none; and the difference by run.

    differences: of the scores after training from the first run's, paired by prompt (and noise, of one seed); None for
    the first, and where prompts differ.
    """

    judge: str
    prompts: str
    after: list[Interval | None]
    gain: list[Interval | None]
    differences: list[Interval | None]

    def as_dict(self) -> dict[str, Any]:
        intervals = {"after": self.after, "gain": self.gain, "difference_from_first": self.differences}
        return {
            "judge": self.judge,
            "prompts": self.prompts,
            **{name: [i.as_dict() if i else None for i in values] for name, values in intervals.items()},
        }


def score_rows(runs: Sequence[Compared]) -> list[ScoreRow]:
    """Of every judge and prompt set that a run has."""
    pairs = [(j, p) for run in runs if run.scores for p, judges in run.scores.judged.items() for j in judges]
    return [_score_row(runs, judge, prompts) for judge, prompts in dict.fromkeys(pairs)]


def _score_row(runs: Sequence[Compared], judge: str, prompts: str) -> ScoreRow:
    found = [run.scores.judged.get(prompts, {}).get(judge) if run.scores else None for run in runs]
    return ScoreRow(
        judge,
        prompts,
        [clustered_interval(paired.after) if paired else None for paired in found],
        [clustered_interval(paired.gain) if paired else None for paired in found],
        [
            None,
            *(
                _difference(runs[0], run, prompts, found[0], paired)
                for run, paired in zip(runs[1:], found[1:], strict=True)
            ),
        ],
    )


def _difference(
    first: Compared, run: Compared, prompts: str, theirs: Paired | None, ours: Paired | None
) -> Interval | None:
    if theirs is None or ours is None or first.scores is None or run.scores is None:
        return None
    same_noise = first.config.seed == run.config.seed and theirs.after.shape == ours.after.shape
    if first.scores.prompts[prompts] != run.scores.prompts[prompts]:
        return None
    if same_noise:
        return clustered_interval(ours.after - theirs.after)
    if len(ours.after) < 2:
        return None  # of one prompt, pictures with other noise are no pairs
    return clustered_interval((ours.after.mean(axis=1) - theirs.after.mean(axis=1))[:, None])


def sheets(runs: Sequence[Compared]) -> list[Sheet]:
    """Settings that differ, scores after training, and where training stands."""
    names = tuple(run.name for run in runs)
    settings = tuple((key, *map(str, values)) for key, values in differences(runs).items())
    result = [Sheet("settings that differ", ("setting", *names), settings)]
    if rows := score_rows(runs):
        result += [
            Sheet(
                "mean score after training [95 %, clustered by prompt], and its difference from the first run's",
                ("judge", "prompts", *names, *(f"{name} - {names[0]}" for name in names[1:])),
                tuple(
                    (r.judge, r.prompts, *map(_cell, r.after), *(_cell(d, "+") for d in r.differences[1:]))
                    for r in rows
                ),
                names=2,
            ),
            Sheet(
                "gain, same prompts and noise before and after [95 %, clustered by prompt]",
                ("judge", "prompts", *names),
                tuple((r.judge, r.prompts, *(_cell(gain, "+") for gain in r.gain)) for r in rows),
                names=2,
            ),
        ]
    return [*result, Sheet("training so far", ("", *names), tuple(_progress(runs)))]


def _progress(runs: Sequence[Compared]) -> list[tuple[str, ...]]:
    lines = [("gradient steps", *(str(run.step.get("step", 0)) for run in runs))]
    for names, kind in ((SHOWN_STAGE, "stage"), (SHOWN_STEP, "step")):
        for name in names:
            values = [getattr(run, kind).get(name) for run in runs]
            lines.append((f"{name}, last {kind}", *("" if v is None else f"{v:.4g}" for v in values)))
    return lines


def _cell(interval: Interval | None, sign: str = "") -> str:
    return shown(interval, sign) if interval else ""
