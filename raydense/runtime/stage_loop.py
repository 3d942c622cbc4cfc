"""Algorithm 1 on one screen, on the Protocols of `raydense.core.interfaces`: local or distributed alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from raydense.config import Config, ConfigError
from raydense.core.interfaces import Fleet, Learner
from raydense.core.ledger import Ledger
from raydense.core.types import RESTORED, PolicyWeights, Position, StepMetrics, UnitReport, WorkUnit
from raydense.runtime.normalising import StageScales
from raydense.runtime.plan import PromptSets, stage_units

Handle = TypeVar("Handle")


class Observer(Protocol):
    """What a run tells the outside; nothing that it does comes back into the run."""

    def stage_started(self, stage: int, weights: PolicyWeights) -> None: ...

    def unit_collected(self, report: UnitReport, done: int, total: int) -> None: ...

    def stage_collected(
        self, stage: int, reports: Sequence[UnitReport], account: Mapping[str, int], again: bool
    ) -> None: ...

    def steps_taken(self, position: Position, metrics: Sequence[StepMetrics], behaviour: PolicyWeights) -> None: ...

    def stage_finished(self, stage: int, weights: PolicyWeights) -> None: ...


def run_stages(
    config: Config,
    prompts: PromptSets,
    fleet: Fleet[Handle],
    learner: Learner[Handle],
    observer: Observer,
    start: Position = Position(),  # noqa: B008 (immutable)
    behaviour: PolicyWeights | None = None,
    scales: StageScales | None = None,
) -> PolicyWeights:
    """Runs every stage: broadcast, collect, replace the buffer, train. Returns the final weights.

    A run that continues inside a stage gives `start` and the `behaviour` weights that this stage was sampled with.
    `scales` normalises a mixture's components, where the reward asks for it.
    """
    weights = behaviour or learner.weights()
    for stage in range(start.stages, config.stage.count):
        taken = start.steps if stage == start.stages else 0
        observer.stage_started(stage, weights)
        fleet.broadcast(weights)

        units = stage_units(config, prompts.train, stage, weights.version, scales.of(stage) if scales else ())
        reports, groups, account = _collect(units, weights, fleet, observer, config.replay.max_bytes)
        if scales:
            scales.update(stage, reports)
        observer.stage_collected(stage, reports, account, taken > 0)

        learner.begin_stage(stage, groups)
        del groups  # the replay buffer alone keeps them alive
        for step in range(taken, config.stage.steps):
            observer.steps_taken(Position(stage, step + 1), learner.train(1), weights)

        weights = learner.weights()
        fleet.broadcast(weights)
        observer.stage_finished(stage, weights)
    return weights


def _collect(
    units: Sequence[WorkUnit],
    weights: PolicyWeights,
    fleet: Fleet[Handle],
    observer: Observer,
    max_bytes: int | None,
) -> tuple[list[UnitReport], list[Handle], Mapping[str, int]]:
    """All reports, groups and the account of a stage, in the order of the units: that of arrival has no meaning."""
    ledger = Ledger(units)
    arrivals: dict[int, tuple[UnitReport, Sequence[Handle]]] = {}
    for report, handles in fleet.collect(units):
        if report.sampler != RESTORED:  # whoever restores a unit decides which weights it may be of
            _check_stamps(report, weights)
        _check_capacity(report, sum(len(unit.prompts) for unit in units), max_bytes)
        ledger.finish(report)
        arrivals[report.unit.index] = report, handles
        observer.unit_collected(report, len(ledger), len(units))
    ordered = [arrivals[index] for index in sorted(arrivals)]
    groups = [handle for _, handles in ordered for handle in handles]
    return [report for report, _ in ordered], groups, ledger.balance(len(groups))


def _check_stamps(report: UnitReport, weights: PolicyWeights) -> None:
    """Every group must carry the stamp of the weights that its unit names."""
    for group in report.groups:
        if (group.weights_version, group.weights_checksum) != (weights.version, weights.checksum):
            raise RuntimeError(
                f"group {group.index} of stage {group.stage} was sampled with weights version {group.weights_version} "
                f"({group.weights_checksum}), not {weights.version} ({weights.checksum})"
            )


def _check_capacity(report: UnitReport, groups: int, max_bytes: int | None) -> None:
    """The first unit tells what a stage will take; better then than when the store is full."""
    expected = groups * max(group.nbytes for group in report.groups)
    if max_bytes is not None and expected > max_bytes:
        raise ConfigError(
            f"replay.max_bytes={max_bytes} is less than the {expected} bytes of a stage's {groups} groups; raise it "
            "or lower stage.groups or sampler.keep"
        )
