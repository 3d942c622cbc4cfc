"""Algorithm 1 on one screen, on the Protocols of `raydense.core.interfaces`: local or distributed alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from raydense.config import Config
from raydense.core.interfaces import Fleet, Learner
from raydense.core.types import PolicyWeights, StepMetrics, UnitReport
from raydense.runtime.plan import PromptSets, stage_units

Handle = TypeVar("Handle")


class Observer(Protocol):
    """What a run tells the outside; nothing that it does comes back into the run."""

    def stage_started(self, stage: int, weights: PolicyWeights) -> None: ...

    def unit_collected(self, report: UnitReport, done: int, total: int) -> None: ...

    def stage_collected(self, stage: int, reports: Sequence[UnitReport]) -> None: ...

    def steps_taken(self, stage: int, metrics: Sequence[StepMetrics]) -> None: ...

    def stage_finished(self, stage: int, weights: PolicyWeights) -> None: ...


def run_stages(
    config: Config, prompts: PromptSets, fleet: Fleet[Handle], learner: Learner[Handle], observer: Observer
) -> PolicyWeights:
    """Runs every stage: broadcast, collect, replace the buffer, train. Returns the final weights."""
    weights = learner.weights()
    for stage in range(config.stage.count):
        observer.stage_started(stage, weights)
        fleet.broadcast(weights)

        units = stage_units(config, prompts.train, stage, weights.version)
        arrivals: dict[int, tuple[UnitReport, Sequence[Handle]]] = {}
        for report, handles in fleet.collect(units):
            _check_stamps(report, weights)
            arrivals[report.unit.index] = report, handles
            observer.unit_collected(report, len(arrivals), len(units))
        ordered = [arrivals[unit.index] for unit in units]  # order of arrival carries no meaning
        observer.stage_collected(stage, [report for report, _ in ordered])

        learner.begin_stage(stage, [handle for _, handles in ordered for handle in handles])
        del arrivals, ordered  # the replay buffer alone keeps the groups alive
        for _ in range(config.stage.steps):
            observer.steps_taken(stage, learner.train(1))

        weights = learner.weights()
        fleet.broadcast(weights)
        observer.stage_finished(stage, weights)
    return weights


def _check_stamps(report: UnitReport, weights: PolicyWeights) -> None:
    """Every group must carry the stamp of the weights that its unit names."""
    for group in report.groups:
        if (group.weights_version, group.weights_checksum) != (weights.version, weights.checksum):
            raise RuntimeError(
                f"group {group.index} of stage {group.stage} was sampled with weights version {group.weights_version} "
                f"({group.weights_checksum}), not {weights.version} ({weights.checksum})"
            )
