"""The judges of one sampler: the trained reward, whose failure is the unit's, and monitors, who may be missing."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from raydense.core.interfaces import ScoreError, Scorer, SharedStateChanged
from raydense.core.messages import one_line
from raydense.core.types import FloatArray, Scales
from raydense.rewards.mixture import MixtureScorer


@dataclass(frozen=True)
class Verdict:
    """Scores by judge, float32 [N] each, NaN where a monitor failed; and why it did, by its name."""

    scores: Mapping[str, FloatArray]
    failures: Mapping[str, str] = field(default_factory=dict)


class Judges:
    """Asked one after the other; each gets pictures and prompts of its own, into which it may write.

    Args:
        scorer: the training reward; a mixture's components are scored once and logged beside it.
        monitors: further judges, logged only.
    """

    def __init__(self, scorer: Scorer, monitors: Sequence[Scorer]) -> None:
        self._mixture = scorer if isinstance(scorer, MixtureScorer) else None
        self._trained = self._mixture.components if self._mixture else (scorer,)
        self._monitors = tuple(monitors)
        self._damage: list[SharedStateChanged] = []

    @property
    def damage(self) -> int:
        """How often one of them changed what all threads of the process share."""
        return len(self._damage)

    def judge(self, images: NDArray[np.uint8], prompts: Sequence[str], damage: int, scales: Scales = ()) -> Verdict:
        """Scores of images uint8 [N, h, w, 3] and N prompts.

        Args: damage: how much there was when work on the pictures began; they are not trusted if there is more now.
        Raises: ScoreError if the reward or a part of it fails; SharedStateChanged, also for the pictures that another
            thread made meanwhile.
        """
        if damage != self.damage:
            raise SharedStateChanged(f"{self._damage[-1]}; these pictures were made meanwhile")
        try:
            return self._ask_all(images, prompts, scales)
        except SharedStateChanged as error:
            self._damage.append(error)
            raise

    def _ask_all(self, images: NDArray[np.uint8], prompts: Sequence[str], scales: Scales) -> Verdict:
        scores = {judge.name: _ask(judge, images, prompts) for judge in self._trained}
        failures = {}
        for monitor in self._monitors:
            try:
                scores[monitor.name] = _ask(monitor, images, prompts)
            except ScoreError as error:
                scores[monitor.name] = np.full(len(images), np.nan, np.float32)
                failures[monitor.name] = str(error)
        if self._mixture is not None:
            scores = {self._mixture.name: self._mixture.combine(scores, scales), **scores}
        return Verdict(scores, failures)


def _ask(judge: Scorer, images: NDArray[np.uint8], prompts: Sequence[str]) -> FloatArray:
    """One finite score an image. Raises: ScoreError: a failing or non-finite score is never a number."""
    try:
        values = judge.score(images.copy(), list(prompts))
    except SharedStateChanged:
        raise
    except BaseException as error:  # whatever a model or a user's function raises, sys.exit among it
        if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            raise  # there it is the user's Ctrl-C
        several = "" if len(set(prompts)) == 1 else f" or one of the {len(set(prompts)) - 1} prompts beside it"
        reason = one_line(error)
        raise ScoreError(
            f"scorer {judge.name} failed on the prompt {prompts[0]!r}{several}: {type(error).__name__}: {reason}"
        ) from error
    if not (finite := np.isfinite(values)).all():
        bad = int(np.flatnonzero(~finite)[0])
        raise ScoreError(f"scorer {judge.name} gave {values[bad]} for the prompt {prompts[bad]!r}")
    return values
