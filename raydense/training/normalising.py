"""z-scores of a mixture's components (`normalise: zscore`): which mean and standard deviation each stage divides by.

A component's scores are normalised with their mean and standard deviation over all pictures of *the stage before*; for
the first stage, over the base model's pictures of training prompts, which every run judges first. Why not over the
stage itself: of R trajectories a sampler keeps K by their rank in the mixture, long before the stage is complete, and
keeping all R until then would multiply the replay buffer by R/K. Within a group only the ratios of the standard
deviations decide the order, and these move little from one stage to the next.

So the statistics are known before a stage's first unit is issued, travel with the units, and are part of what a unit
is: any sampler gives the same scores, a stored unit of other statistics is sampled anew, and a run that continues
reads them from `normalisation.json`, their record, where each stage's entry lies before the stage begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeGuard

import numpy as np

from raydense.config import ConfigError
from raydense.core.types import FloatArray, Scales, UnitReport
from raydense.records.scores import Judgement
from raydense.records.stage_file import StageFile
from raydense.rewards.mixture import weighted_sum
from raydense.sections.rewards import MixtureScorerConfig, ScorerConfig

FILE = "normalisation.json"


def is_zscored(scorer: ScorerConfig) -> TypeGuard[MixtureScorerConfig]:
    return scorer.kind == "mixture" and scorer.normalise == "zscore"


class StageScales:
    """The statistics of each stage; of a reward that needs none, nothing.

    Args: root: the run directory; None: of pictures that belong to no run.
    """

    def __init__(self, scorer: ScorerConfig, root: Path | None) -> None:
        self._mixture, self._weights = scorer.name, dict[str, float]()
        if is_zscored(scorer):
            self._weights = {component.scorer.name: component.weight for component in scorer.components}
        self._file = StageFile(root / FILE if root else None)

    def __contains__(self, stage: int) -> bool:
        return stage in self._file

    def calibrate(self, base: Judgement) -> None:
        """Sets the first stage's statistics, from the judging of the base model, unless the run has them already."""
        if self._weights and 0 not in self._file:
            self._write(0, base.scores["train"])

    def of(self, stage: int) -> Scales:
        """Raises: ConfigError where the run directory has lost them."""
        if not self._weights:
            return ()
        if stage not in self._file:
            raise ConfigError(f"{self._file.path} has no entry for stage {stage}; restore the file, or start a new run")
        return tuple((name, entry["mean"], entry["std"]) for name, entry in self._file[stage].items())

    def update(self, stage: int, reports: Sequence[UnitReport]) -> None:
        """Sets the next stage's statistics, from a whole stage's reports in the order of their units."""
        groups = [group for report in reports for group in report.groups]
        self._write(stage + 1, {n: np.array([g.monitors[n] for g in groups], np.float32) for n in self._weights})

    def restate(self, judgement: Judgement) -> Judgement:
        """With the mixture on the first stage's scale whatever the weights judged, so that before and after compare."""
        if not self._weights:
            return judgement
        scales = self.of(0)
        scores = {
            name: {**by_scorer, self._mixture: weighted_sum(by_scorer, self._weights, scales)}
            for name, by_scorer in judgement.scores.items()
        }
        return replace(judgement, scores=scores)

    def values(self, stage: int) -> dict[str, float]:
        """For the metrics: `reward/normalise/<component>/mean` and `/std`; a run that samples nothing has none."""
        return {
            f"reward/normalise/{name}/{what}": value
            for name, mean, std in (self.of(stage) if stage in self._file else ())
            for what, value in (("mean", mean), ("std", std))
        }

    def _write(self, stage: int, scores: Mapping[str, FloatArray]) -> None:
        if self._weights:
            self._file[stage] = {name: _mean_and_std(scores[name]) for name in self._weights}


def _mean_and_std(scores: FloatArray) -> dict[str, float]:
    values = np.asarray(scores, dtype=np.float64)
    return {"mean": float(values.mean()), "std": float(values.std())}
