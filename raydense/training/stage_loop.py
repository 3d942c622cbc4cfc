"""Algorithm 1 on one screen, on the Protocols of `raydense.core.interfaces`: local or distributed alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from raydense.config import Config
from raydense.core.interfaces import Fleet, GroupsLost, Learner
from raydense.core.types import PolicyWeights, Position, StepMetrics, UnitReport
from raydense.fleets.collecting import StageCollection
from raydense.planning.units import PromptSets, stage_units
from raydense.training.normalising import StageScales
from raydense.training.result import result_of

Handle = TypeVar("Handle")


@dataclass(frozen=True)
class StageState:
    """What a stage that continues must know beside the learner's state; None where it is yet to begin.

    behaviour: the weights that its own work units name, and its trajectories were sampled with.
    began: θ when it began, or its average (`train.ema_rollouts`): what, overlapped, the next stage's units name.
    outstanding: the next stage's units that are under way.
    """

    behaviour: PolicyWeights | None = None
    began: PolicyWeights | None = None
    outstanding: Sequence[int] = ()


class Observer(Protocol):
    """What a run tells the outside; nothing that it does comes back into the run."""

    def stage_started(self, stage: int, weights: PolicyWeights) -> None: ...

    def unit_collected(self, report: UnitReport, done: int, total: int) -> None: ...

    def stage_collected(
        self, stage: int, reports: Sequence[UnitReport], account: Mapping[str, int], again: bool
    ) -> None: ...

    def steps_taken(self, position: Position, metrics: Sequence[StepMetrics], state: StageState) -> None: ...

    def stage_finished(
        self, stage: int, weights: PolicyWeights, account: Mapping[str, int], following: StageState
    ) -> None: ...


def run_stages(
    config: Config,
    prompts: PromptSets,
    fleet: Fleet[Handle],
    learner: Learner[Handle],
    observer: Observer,
    start: Position = Position(),  # noqa: B008 (immutable)
    known: StageState = StageState(),
    scales: StageScales | None = None,
) -> PolicyWeights:
    """Runs every stage: broadcast, collect, replace the buffer, train. Returns the run's result.

    In the overlapped schedule the next stage is collected while this one trains, with the weights that this one began
    with (METHOD §5). A run that continues gives `start` and the weights that this stage knows. `scales` normalises a
    mixture's components, where the reward asks for it.
    """
    overlapped = config.stage.schedule == "overlapped"
    give = partial(result_of, learner) if config.train.ema_rollouts else learner.weights

    def collect(stage: int, weights: PolicyWeights) -> StageCollection[Handle]:
        units = stage_units(config, prompts.train, stage, weights.version, scales.of(stage) if scales else ())
        return StageCollection(fleet, units, weights, observer.unit_collected, config.replay.max_bytes)

    ahead: StageCollection[Handle] | None = None
    final = result_of(learner)
    try:
        for stage in range(start.stages, config.stage.count):
            began = known.began or give()
            behaviour = known.behaviour or began
            observer.stage_started(stage, behaviour)
            current, ahead = ahead or collect(stage, behaviour), None
            current.finish()
            if scales:
                scales.update(stage, current.reports)
            taken = start.steps if stage == start.stages else 0
            observer.stage_collected(stage, current.reports, current.account, taken > 0)
            if overlapped and stage + 1 < config.stage.count:
                ahead = collect(stage + 1, began)

            learner.begin_stage(stage, current.handles)
            for step in range(taken, config.stage.steps):
                metrics = _train_step(learner, stage, current)
                observer.steps_taken(
                    Position(stage, step + 1), metrics, StageState(behaviour, began, ahead.outstanding if ahead else ())
                )
                if ahead is not None:
                    ahead.poll()

            final = result_of(learner)
            fleet.broadcast(final)
            learner.begin_stage(stage + 1, ())  # frees this stage's groups before more are collected
            account = current.account
            del current
            known = StageState(began if overlapped else None, outstanding=ahead.outstanding if ahead else ())
            observer.stage_finished(stage, final, account, known)
    finally:
        if ahead is not None:
            ahead.close()
    return final


def _train_step(learner: Learner[Handle], stage: int, groups: StageCollection[Handle]) -> Sequence[StepMetrics]:
    """One step; a step whose groups went with their node is taken when they are there again."""
    while True:
        try:
            return learner.train(1)
        except GroupsLost:
            groups.recover()
            learner.begin_stage(stage, groups.handles)
