"""Arms of a sweep against each other, seed by seed: the difference, how sure it is, how many seeds would show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raydense.core.statistics import Interval, mean_interval, pairs_needed, sign_test
from raydense.evaluation.sweep import Settings, label

AVERAGED, LAST_STEP = "averaged", "last step"


@dataclass(frozen=True)
class Arm:
    """What is compared: settings, and which weights of their runs.

    weights: of runs with `train.ema`, whether the average, which is their result, or the last step's; else empty.
    """

    settings: Settings
    weights: str = ""

    @property
    def name(self) -> str:
        return label(self.settings) + (f" ({self.weights})" if self.weights else "")


@dataclass(frozen=True)
class Difference:
    """Of an arm's gains from those of another arm with the same seed.

    by_seed: of the seeds that both have. interval: Student's, over them; NaN bounds for one seed alone.
    sign_p: the exact sign test's. needed: so many seeds show a difference of this size and spread in 80 % of cases.
    notes: why the two are not like with like.
    """

    against: Arm
    by_seed: Mapping[int, float]
    interval: Interval
    sign_p: float
    needed: int | None
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        return self.interval.side or "not decided"

    def as_dict(self) -> dict[str, Any]:
        return {
            "against": {**dict(self.against.settings), "weights": self.against.weights},
            "seeds": list(self.by_seed),
            "by_seed": list(self.by_seed.values()),
            **self.interval.as_dict(),
            "sign_test_p": self.sign_p,
            "seeds_needed": self.needed,
            "notes": list(self.notes),
        }


def difference(
    ours: Mapping[int, float], theirs: Mapping[int, float], against: Arm, notes: Sequence[str] = ()
) -> Difference | None:
    """Of gains by seed; None where no seed is in both."""
    by_seed = {seed: gain - theirs[seed] for seed, gain in ours.items() if seed in theirs}
    if not by_seed:
        return None
    values = list(by_seed.values())
    return Difference(against, by_seed, mean_interval(values), sign_test(values), pairs_needed(values), tuple(notes))


def reference(arm: Arm, against: Settings, arms: Sequence[Arm]) -> Arm | None:
    """Whom an arm is compared with: the same weights of `against`, or else its result; None for that result itself."""
    results = [other for other in arms if other.settings == against and other.weights != LAST_STEP]
    same = [other for other in arms if other.settings == against and other.weights == arm.weights != ""]
    if arm.settings == against:
        same = []  # its last step is compared with their own average
    found = next(iter([*same, *results]), None)
    return None if found == arm else found
