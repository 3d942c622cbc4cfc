"""What a sweep found, arm by arm: gains with 95 % intervals over the seeds, compute, differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from raydense.core.statistics import Interval, clustered_interval, mean_interval
from raydense.evaluation.compute import Counts, mean_counts, read_counts, unequal
from raydense.evaluation.paired import AVERAGED, LAST_STEP, Arm, Difference, difference, reference
from raydense.evaluation.sweep import Settings, Trial
from raydense.records.scores import Paired, Scores, read_scores

Prompts = tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """Scores of one arm over its finished seeds, under one judge, on one prompt set.

    gains: mean paired gain (same prompts, same noise) by seed.
    gain: their mean with its interval over the seeds: what another seed may give. NaN bounds for one seed alone.
    over_prompts: the same mean clustered by prompt: what other prompts may give these very LoRAs.
    rows: of the network in a run, by kind, mean over the seeds; empty where a run did not count them.
    difference: from the arm that the others are compared with; None for itself.
    """

    arm: Arm
    prompts: str
    judge: str
    before: float
    after: float
    gains: Mapping[int, float]
    gain: Interval
    over_prompts: Interval
    rows: Counts
    difference: Difference | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "settings": dict(self.arm.settings),
            "weights": self.arm.weights,
            "prompts": self.prompts,
            "judge": self.judge,
            "seeds": list(self.gains),
            "before": self.before,
            "after": self.after,
            "gain_by_seed": list(self.gains.values()),
            "gain": self.gain.as_dict(),
            "gain_over_prompts": self.over_prompts.as_dict(),
            "network_rows": dict(self.rows),
            "difference": self.difference.as_dict() if self.difference else None,
        }


@dataclass(frozen=True)
class _Runs:
    """Finished runs of one arm, by seed."""

    judged: Mapping[int, Mapping[str, Mapping[str, Paired]]]  # by prompt set and judge
    prompts: Mapping[str, Prompts]
    rows: Counts


def outcomes(trials: Sequence[Trial], against: Settings | None = None) -> list[Outcome]:
    """Of all finished trials: the arms in their order, and each with its judges and prompt sets.

    Args: against: the settings that the others are compared with; None: the first that has a finished run.
    """
    arms = _arms(trials)
    found = [
        _outcome(arm, prompts, judge, runs)
        for arm, runs in arms.items()
        for prompts, judges in next(iter(runs.judged.values())).items()
        for judge in judges
    ]
    first = against if against is not None else next(iter(arms)).settings if arms else ()
    by_place = {(o.arm, o.prompts, o.judge): o for o in found}
    compared = []
    for outcome in found:
        other = reference(outcome.arm, first, list(arms))
        theirs = by_place.get((other, outcome.prompts, outcome.judge)) if other else None
        notes = _notes(arms[outcome.arm], arms[theirs.arm], outcome.prompts) if theirs else []
        found_difference = difference(*_known_to_both(outcome, theirs, arms), theirs.arm, notes) if theirs else None
        compared.append(replace(outcome, difference=found_difference))
    return compared


def _known_to_both(
    ours: Outcome, theirs: Outcome, arms: Mapping[Arm, _Runs]
) -> tuple[dict[int, float], dict[int, float]]:
    """Gains by seed, over the prompts of which a judge who failed at times knows every score in both arms."""
    found = {seed: (gain, theirs.gains[seed]) for seed, gain in ours.gains.items() if seed in theirs.gains}
    for seed in list(found):
        tables = [arms[o.arm].judged[seed][o.prompts][o.judge].gain for o in (ours, theirs)]
        if len(tables[0]) != len(tables[1]):
            continue  # they were judged on other prompts, which a note says
        known = ~np.isnan(np.concatenate(tables, axis=1)).any(axis=1)
        if known.any():
            found[seed] = float(tables[0][known].mean()), float(tables[1][known].mean())
        else:
            del found[seed]
    return {seed: gain for seed, (gain, _) in found.items()}, {seed: gain for seed, (_, gain) in found.items()}


def _arms(trials: Sequence[Trial]) -> dict[Arm, _Runs]:
    by_setting: dict[Settings, dict[int, tuple[Scores, Counts]]] = {}
    for trial in trials:
        if trial.finished and (scores := read_scores(trial.directory)):
            by_setting.setdefault(trial.settings, {})[trial.seed] = scores, read_counts(trial.directory)
    arms: dict[Arm, _Runs] = {}
    for settings, by_seed in by_setting.items():
        prompts = next(iter(by_seed.values()))[0].prompts
        rows = mean_counts([counts for _, counts in by_seed.values()])
        judged = {seed: scores.judged for seed, (scores, _) in by_seed.items()}
        last_step = {seed: scores.last_step for seed, (scores, _) in by_seed.items() if scores.last_step}
        arms[Arm(settings, AVERAGED if last_step else "")] = _Runs(judged, prompts, rows)
        if last_step:
            arms[Arm(settings, LAST_STEP)] = _Runs(last_step, prompts, rows)
    return arms


def _outcome(arm: Arm, prompts: str, judge: str, runs: _Runs) -> Outcome:
    tables = {seed: judged[prompts][judge] for seed, judged in runs.judged.items()}
    known = {seed: paired.known for seed, paired in tables.items() if len(paired.known.gain)}
    gains = {seed: float(paired.gain.mean()) for seed, paired in known.items()}
    return Outcome(
        arm,
        prompts,
        judge,
        mean_interval([paired.before.mean() for paired in known.values()]).mean,
        mean_interval([paired.after.mean() for paired in known.values()]).mean,
        gains,
        mean_interval(list(gains.values())),
        clustered_interval(np.concatenate([paired.gain for paired in tables.values()], axis=1)),
        runs.rows,
    )


def _notes(ours: _Runs, theirs: _Runs, prompts: str) -> list[str]:
    other = ours.prompts.get(prompts) != theirs.prompts.get(prompts)
    return [
        *([f"judged on other {prompts} prompts: not like with like"] if other else []),
        *unequal(ours.rows, theirs.rows),
    ]
