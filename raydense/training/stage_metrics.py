"""What a collected stage and a judgement say in numbers, each mean with its 95 % confidence interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from raydense.core.statistics import Interval, clustered_interval
from raydense.core.types import FloatArray, GroupMeta, steps_of

Ends = dict[str, list[float | None]]  # by metric: low and high; None where there is one cluster alone


def stage_values(stage: int, groups: Sequence[GroupMeta], steps_a_stage: int) -> tuple[dict[str, float], Ends]:
    """Metrics of the groups that the replay buffer gets, over all R trajectories of each, and intervals over groups.

    `reward/tied_groups` is the share of those that state no preference, because all their rewards are equal.
    `policy/staleness` is counted in stages: 0 where they were sampled with the weights that the stage begins with.
    """
    rewards, steps = np.array([g.rewards for g in groups]), steps_of(groups[0].weights_version)
    intervals = {"reward/mean": clustered_interval(rewards)}
    for name in groups[0].monitors:
        intervals[f"reward/monitor/{name}"] = clustered_interval([g.monitors[name] for g in groups])
    means, ends = means_and_ends(intervals)
    values: dict[str, float] = {
        "replay/groups": len(groups),
        "replay/bytes": sum(g.nbytes for g in groups),
        "policy/version": steps,
        "policy/staleness": stage - steps // steps_a_stage,
        "reward/std_within": float(rewards.std(axis=1).mean()),
        "reward/tied_groups": float((rewards == rewards[:, :1]).all(axis=1).mean()),
    }
    return {**means, **values}, ends


def nothing_but_ties(ties: str) -> str:
    """What a stage without any preference leads to, by `train.ties`."""
    what = "the gradient steps change nothing" if ties == "marginal" else "train.ties=random makes orders of them"
    return f"all trajectories of every group have the same reward; {what}"


def judgement_values(scores: Mapping[str, Mapping[str, FloatArray]]) -> tuple[dict[str, float], Ends]:
    """`evaluate/<set>/<scorer>` of scores float32 [P, m] by prompt set and scorer, and intervals over prompts."""
    return means_and_ends(
        {
            f"evaluate/{name}/{scorer}": clustered_interval(values)
            for name, by_scorer in scores.items()
            for scorer, values in by_scorer.items()
        }
    )


def means_and_ends(intervals: Mapping[str, Interval]) -> tuple[dict[str, float], Ends]:
    """What is of no score at all is left out."""
    intervals = {name: interval for name, interval in intervals.items() if not math.isnan(interval.mean)}
    plain = {name: interval.as_dict() for name, interval in intervals.items()}
    means = {name: interval.mean for name, interval in intervals.items()}
    return means, {name: [ends["low"], ends["high"]] for name, ends in plain.items()}
