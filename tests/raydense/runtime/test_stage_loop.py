"""Algorithm 1 on fakes: who is called in which order, and that arrivals carry no order of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from raydense.config import Config
from raydense.core.types import GroupMeta, PolicyWeights, Position, StepMetrics, UnitReport, WorkUnit
from raydense.runtime.plan import PromptSets
from raydense.runtime.stage_loop import run_stages

SETS = PromptSets(("a cat", "a dog"), ())
Log = list[tuple[Any, ...]]


class LoggingLearner:
    def __init__(self, log: Log) -> None:
        self._log, self.step = log, 0

    def weights(self) -> PolicyWeights:
        return PolicyWeights.of(self.step, {"a": np.full(1, self.step, np.float32)})

    def begin_stage(self, stage: int, groups: Sequence[str]) -> None:
        self._log.append(("begin", stage, list(groups)))

    def train(self, num_steps: int) -> list[StepMetrics]:
        self.step += num_steps
        self._log.append(("train", num_steps))
        return [StepMetrics(self.step, {})]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None: ...


class BackwardsFleet:
    """Delivers the last unit first, and stamps groups with the weights it was given, or with others."""

    deaths = retried = 0

    def __init__(self, log: Log, stale: bool = False) -> None:
        self._log, self._stale = log, stale

    def broadcast(self, weights: PolicyWeights) -> None:
        self._weights = weights
        self._log.append(("broadcast", weights.version))

    def collect(self, units: Iterable[WorkUnit]) -> Iterator[tuple[UnitReport, Sequence[str]]]:
        for unit in reversed(list(units)):
            weights = replace(self._weights, version=99) if self._stale else self._weights
            metas = tuple(
                GroupMeta(unit.stage, g, p, (0.0,), {}, 1, weights.version, weights.checksum)
                for g, p in zip(unit.group_indices, unit.prompts, strict=True)
            )
            yield UnitReport(unit, metas), [f"s{unit.stage}g{g}" for g in unit.group_indices]

    def render(self, units: Any) -> Any: ...


class LoggingObserver:
    def __init__(self, log: Log) -> None:
        self._log = log

    def stage_started(self, stage: int, weights: PolicyWeights) -> None:
        self._log.append(("started", stage, weights.version))

    def unit_collected(self, report: UnitReport, done: int, total: int) -> None:
        self._log.append(("unit", report.unit.index, done, total))

    def stage_collected(
        self, stage: int, reports: Sequence[UnitReport], account: Mapping[str, int], again: bool
    ) -> None:
        self._log.append(("again" if again else "collected", stage, [r.unit.index for r in reports]))

    def steps_taken(self, position: Position, metrics: Sequence[StepMetrics], behaviour: PolicyWeights) -> None:
        self._log.append(("step", position.stages, position.steps, metrics[-1].step, behaviour.version))

    def stage_finished(self, stage: int, weights: PolicyWeights) -> None:
        self._log.append(("finished", stage, weights.version))


@pytest.fixture
def config(small_config: Callable[..., Config]) -> Config:
    return small_config(stage={"count": 2, "groups": 3, "steps": 2}, train={"batch_groups": 2})


def test_a_whole_run_in_order(config: Config) -> None:
    log: Log = []
    final = run_stages(config, SETS, BackwardsFleet(log), LoggingLearner(log), LoggingObserver(log))
    assert log == [
        ("started", 0, 0),
        ("broadcast", 0),
        ("unit", 1, 1, 2),
        ("unit", 0, 2, 2),
        ("collected", 0, [0, 1]),
        ("begin", 0, ["s0g0", "s0g1", "s0g2"]),
        ("train", 1),
        ("step", 0, 1, 1, 0),
        ("train", 1),
        ("step", 0, 2, 2, 0),
        ("broadcast", 2),
        ("finished", 0, 2),
        ("started", 1, 2),
        ("broadcast", 2),
        ("unit", 1, 1, 2),
        ("unit", 0, 2, 2),
        ("collected", 1, [0, 1]),
        ("begin", 1, ["s1g0", "s1g1", "s1g2"]),
        ("train", 1),
        ("step", 1, 1, 3, 2),
        ("train", 1),
        ("step", 1, 2, 4, 2),
        ("broadcast", 4),
        ("finished", 1, 4),
    ]
    assert final.version == 4


def test_a_run_continues_inside_a_stage_with_the_weights_that_stage_was_sampled_with(config: Config) -> None:
    log: Log = []
    learner = LoggingLearner(log)
    learner.step = 3
    behaviour = PolicyWeights.of(2, {"a": np.full(1, 2, np.float32)})
    final = run_stages(
        config, SETS, BackwardsFleet(log), learner, LoggingObserver(log), start=Position(1, 1), behaviour=behaviour
    )
    assert [entry for entry in log if entry[0] not in ("started", "unit", "begin")] == [
        ("broadcast", 2),
        ("again", 1, [0, 1]),  # not a second row in the metrics
        ("train", 1),
        ("step", 1, 2, 4, 2),
        ("broadcast", 4),
        ("finished", 1, 4),
    ]
    assert final.version == 4


def test_a_group_of_other_weights_is_refused(config: Config) -> None:
    log: Log = []
    with pytest.raises(RuntimeError, match=r"sampled with weights version 99 .* not 0"):
        run_stages(config, SETS, BackwardsFleet(log, stale=True), LoggingLearner(log), LoggingObserver(log))
    assert not [entry for entry in log if entry[0] == "train"]
