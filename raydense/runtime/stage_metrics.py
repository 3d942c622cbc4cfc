"""What a collected stage says in numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from raydense.core.statistics import estimate
from raydense.core.types import GroupMeta


def stage_values(stage: int, groups: Sequence[GroupMeta], steps_a_stage: int) -> dict[str, float]:
    """Metrics of the groups that the replay buffer gets, over all R trajectories of each.

    `policy/staleness` is counted in stages: 0 where they were sampled with the weights that the stage begins with.
    Standard errors are clustered by group; a single group has none.
    """
    version = groups[0].weights_version
    values: dict[str, float] = {
        "replay/groups": len(groups),
        "replay/bytes": sum(g.nbytes for g in groups),
        "policy/version": version,
        "policy/staleness": stage - version // steps_a_stage,
        **_judged("reward/mean", "reward/se", [g.rewards for g in groups]),
        "reward/std_within": float(np.array([g.rewards for g in groups]).std(axis=1).mean()),
    }
    for name in groups[0].monitors:
        scores = [g.monitors[name] for g in groups]
        values |= _judged(f"reward/monitor/{name}", f"reward/monitor_se/{name}", scores)
    return values


def _judged(mean: str, error: str, scores: ArrayLike) -> dict[str, float]:
    """Mean and clustered standard error of scores [G, R]."""
    found = estimate(scores)
    return {mean: found.mean} | ({} if math.isnan(found.se_by_prompt) else {error: found.se_by_prompt})
