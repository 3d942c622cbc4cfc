"""The vocabulary: who does what, whatever runs it. The loop that joins them is `raydense.runtime.stage_loop`:

for stage in range(stages):
    weights = learner.weights()                        # θ of this stage
    fleet.broadcast(weights)
    arrivals = sorted(fleet.collect(units))            # samplers: roll out, score, keep K of R
    learner.begin_stage(arrivals)                      # the replay buffer's content is replaced
    for _ in range(steps): learner.train(1)            # off-policy, on the stage's groups
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from raydense.core.types import (
    FloatArray,
    PolicyWeights,
    Rendered,
    RenderUnit,
    StepMetrics,
    TrajectoryGroup,
    UnitReport,
    WorkUnit,
)

# A group itself, or a reference to one in an object store; a fleet gives handles, a learner takes them.
GivenHandle = TypeVar("GivenHandle", covariant=True)
TakenHandle = TypeVar("TakenHandle", contravariant=True)


class LearnerDied(RuntimeError):
    """The learner's process is gone; the run can continue from its last checkpoint with a new one."""


UNIT_RETRIES = 3  # of a work unit that failed, before the run stops


class ScoreError(RuntimeError):
    """A scorer failed, or gave what is no score; the message names it, a prompt and the cause."""


class UnitFailed(RuntimeError):
    """A work unit failed `UNIT_RETRIES` times more after its first try; the message has the last cause."""

    @staticmethod
    def after(tries: int, cause: BaseException) -> UnitFailed:
        reason = " ".join(str(cause).split()) or type(cause).__name__
        return UnitFailed(f"{reason} (tried {tries} times)")


class NonFiniteStepError(RuntimeError):
    """Several gradient steps in a row had no finite loss or gradient; the message names the last one's batch."""


class Scorer(Protocol):
    """A preference model or any other judge of a finished image."""

    name: str

    def score(self, images: NDArray[np.uint8], prompts: Sequence[str]) -> FloatArray:
        """images uint8 [N, h, w, 3] and N prompts → float32 [N]; higher is better."""
        ...


class Sampler(Protocol):
    """Runs the policy. One process, one device."""

    def sample(self, unit: WorkUnit, weights: PolicyWeights) -> tuple[UnitReport, Sequence[TrajectoryGroup]]:
        """Rolls out and scores a unit with exactly these weights; one group a prompt."""
        ...

    def render(self, unit: RenderUnit, weights: PolicyWeights) -> Rendered:
        """Draws and scores fixed-seed pictures; leaves nothing behind."""
        ...


class Fleet(Protocol[GivenHandle]):
    """All samplers together, as the driver sees them."""

    @property
    def deaths(self) -> int:
        """Samplers that died, this process."""
        ...

    @property
    def lost(self) -> int:
        """Units whose sampler died at work, this process; each was issued again."""
        ...

    @property
    def retried(self) -> int:
        """Units that were issued again, this process."""
        ...

    def broadcast(self, weights: PolicyWeights) -> None:
        """Makes these weights available to every sampler."""
        ...

    def collect(self, units: Iterable[WorkUnit]) -> Iterator[tuple[UnitReport, Sequence[GivenHandle]]]:
        """Results in order of arrival, which carries no meaning; every unit exactly once."""
        ...

    def render(self, units: Iterable[RenderUnit]) -> list[Rendered]:
        """Results in the order of the units."""
        ...


class Learner(Protocol[TakenHandle]):
    """Holds θ, the optimizer and the replay buffer."""

    def weights(self) -> PolicyWeights: ...

    def begin_stage(self, stage: int, groups: Sequence[TakenHandle]) -> None:
        """Replaces the replay buffer's content."""
        ...

    def train(self, num_steps: int) -> list[StepMetrics]:
        """Takes gradient steps on the current stage's groups."""
        ...

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...
