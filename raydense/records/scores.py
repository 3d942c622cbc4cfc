"""The single scores of a run, as arrays: of one set of weights, and of a finished run before and after."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydense.core.statistics import Interval, clustered_interval
from raydense.core.types import FloatArray


@dataclass(frozen=True)
class Judgement:
    """Scores float32 [P, m] by scorer name, by prompt set, and a small picture file of each prompt, its first.

    A monitor's score is NaN, and null in a file, where it failed; failures: why, by its name.
    """

    scores: Mapping[str, Mapping[str, FloatArray]]
    pictures: Mapping[str, Sequence[bytes]] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)

    def as_lists(self) -> dict[str, dict[str, list[Any]]]:
        return {name: {s: as_list(v) for s, v in by.items()} for name, by in self.scores.items()}

    @staticmethod
    def of_lists(values: Mapping[str, Mapping[str, list[Any]]]) -> Judgement:
        return Judgement({n: {s: np.array(v, dtype=np.float32) for s, v in by.items()} for n, by in values.items()})


def as_list(scores: FloatArray) -> list[Any]:
    """For JSON, which has no NaN."""
    values = scores.astype(object)
    values[np.isnan(scores)] = None
    return list(values.tolist())


@dataclass(frozen=True)
class Paired:
    """Of one judge on one prompt set: float64 [P, m] each, same prompts and noise; NaN where it failed."""

    before: NDArray[np.float64]
    after: NDArray[np.float64]

    @property
    def gain(self) -> NDArray[np.float64]:
        return self.after - self.before

    @property
    def known(self) -> Paired:
        """The prompts of which every score is known."""
        rows = ~np.isnan(self.gain).any(axis=1)
        return Paired(self.before[rows], self.after[rows])

    def intervals(self) -> tuple[Interval, Interval, Interval]:
        """Of before, after and gain, clustered by prompt."""
        return clustered_interval(self.before), clustered_interval(self.after), clustered_interval(self.gain)


@dataclass(frozen=True)
class Scores:
    """By prompt set: the prompts in their order, and the scores by judge.

    judged: of the run's result; last_step: where that is an average (`train.ema`), of the weights of the last step.
    """

    prompts: Mapping[str, tuple[str, ...]]
    judged: Mapping[str, Mapping[str, Paired]]
    last_step: Mapping[str, Mapping[str, Paired]] | None = None


def read_scores(run: Path) -> Scores | None:
    """What a run wrote into scores.json; None where it is not there yet, as in a run that has not finished."""
    path = run / "scores.json"
    if not path.is_file():
        return None
    content = {name: by_prompt for name, by_prompt in json.loads(path.read_text("utf-8")).items() if by_prompt}
    rows = [scores for by_prompt in content.values() for by_judge in by_prompt.values() for scores in by_judge.values()]
    averaged = bool(rows) and all("last_step" in scores for scores in rows)
    return Scores(
        {name: tuple(by_prompt) for name, by_prompt in content.items()},
        _paired(content, "after"),
        _paired(content, "last_step") if averaged else None,
    )


def _paired(content: Mapping[str, Mapping[str, Any]], then: str) -> dict[str, dict[str, Paired]]:
    """By prompt set and judge: the base model's scores beside those of `then`."""
    return {
        name: {
            judge: Paired(
                *(np.array([row[judge][when] for row in by_prompt.values()], float) for when in ("before", then))
            )
            for judge in next(iter(by_prompt.values()))
        }
        for name, by_prompt in content.items()
    }
