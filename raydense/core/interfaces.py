"""The vocabulary: who does what, whatever runs it. The loop that joins them is `raydense.training.stage_loop`:

for stage in range(stages):
    weights = learner.weights()                        # θ of this stage
    fleet.broadcast(weights)                           # one more live version; a unit names its own
    arrivals = sorted(fleet.collect(units))            # samplers: roll out, score, keep K of R
    learner.begin_stage(arrivals)                      # the replay buffer's content is replaced
    for _ in range(steps): learner.train(1)            # off-policy, on the stage's groups
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from raydense.core.messages import one_line
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


class GroupsLost(RuntimeError):
    """Groups of the replay buffer can no longer be read: the node that held them is gone."""


FAULTS = ("deaths", "hangs", "unbuilt", "lost", "retried", "resampled")  # what a fleet counts; see `Fleet.faults`
MAX_UNIT_FAILURES = 3  # exceptions of one work unit, on different samplers where there are several


class ScoreError(RuntimeError):
    """A scorer failed, or gave what is no score; the message names it, a prompt and the cause."""


class SharedStateChanged(RuntimeError):
    """A scorer changed what all threads of its process share; the message names it and what it was."""


class NonFiniteError(RuntimeError):
    """A network gave what is no number; the message says which, and at which step of the chain."""


class InertWeights(RuntimeError):
    """Trained weights were bound and changed nothing: the samplers would go on with the base model."""


class UnitFailed(RuntimeError):
    """A work unit raised `MAX_UNIT_FAILURES` times; the message names it and has the last cause."""

    @staticmethod
    def after(tries: int, what: str, cause: BaseException) -> UnitFailed:
        reason = one_line(cause)
        return UnitFailed(f"{reason} ({what}; tried {tries} times)")


class NonFiniteStepError(RuntimeError):
    """Several gradient steps in a row had no finite loss or gradient; the message names the last one's batch."""


class Scorer(Protocol):
    """A preference model or any other judge of a finished image."""

    name: str

    def score(self, images: NDArray[np.uint8], prompts: Sequence[str]) -> FloatArray:
        """images uint8 [N, h, w, 3] and N prompts → float32 [N]; higher is better."""
        ...


class Sampler(Protocol):
    """Runs the policy. One process, one device; in an actor two threads call it, a unit each."""

    def sample(self, unit: WorkUnit, weights: PolicyWeights) -> tuple[UnitReport, Sequence[TrajectoryGroup]]:
        """Rolls out and scores a unit with exactly these weights; one group a prompt."""
        ...

    def render(self, unit: RenderUnit, weights: PolicyWeights) -> Rendered:
        """Draws and scores fixed-seed pictures; leaves nothing behind."""
        ...


class Collection(Protocol[GivenHandle]):
    """Work units that a fleet is at work on: an iterator of (report, handles) in order of arrival, each unit once."""

    def __iter__(self) -> Iterator[tuple[UnitReport, Sequence[GivenHandle]]]: ...

    def __next__(self) -> tuple[UnitReport, Sequence[GivenHandle]]:
        """The next arrival; waits for it. Raises: UnitFailed, or whatever ends the fleet."""
        ...

    def ready(self) -> bool:
        """Whether one has arrived, so that `next` does not wait."""
        ...

    def close(self) -> None:
        """Gives up what has not arrived."""
        ...


class Fleet(Protocol[GivenHandle]):
    """All samplers together, as the driver sees them."""

    @property
    def faults(self) -> Mapping[str, int]:
        """What went wrong so far, this process, by name (0 where absent).

        `deaths` and `hangs` of samplers, and those that stayed `unbuilt`; units `lost` by samplers, `retried`, and
        `resampled` where their groups had gone.
        """
        ...

    @property
    def live(self) -> int:
        """Samplers that can work now."""
        ...

    def broadcast(self, weights: PolicyWeights) -> None:
        """Makes one more version available to every sampler; units name the version that they want."""
        ...

    def collect(self, units: Iterable[WorkUnit]) -> Collection[GivenHandle]:
        """Starts work on the units; several collections, and `render`, may be under way at once."""
        ...

    def render(self, units: Iterable[RenderUnit]) -> list[Rendered]:
        """Results in the order of the units."""
        ...

    def is_lost(self, handles: Sequence[Any]) -> bool:
        """Whether one of these groups can no longer be read."""
        ...


class Learner(Protocol[TakenHandle]):
    """Holds θ, perhaps its average, the optimizer and the replay buffer."""

    def weights(self) -> PolicyWeights:
        """θ as it is."""
        ...

    def averaged(self) -> PolicyWeights | None:
        """The moving average of θ, a version of its own; None where none is kept."""
        ...

    def begin_stage(self, stage: int, groups: Sequence[TakenHandle]) -> None:
        """Replaces the replay buffer's content."""
        ...

    def train(self, num_steps: int) -> list[StepMetrics]:
        """Takes gradient steps on the current stage's groups. Raises: GroupsLost, before the step, if some are gone."""
        ...

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...
