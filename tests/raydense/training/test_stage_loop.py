"""Algorithm 1 on fakes: who is called in which order, and that arrivals carry no order of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from raydense.config import Config
from raydense.core.interfaces import GroupsLost
from raydense.core.types import GroupMeta, PolicyWeights, Position, StepMetrics, UnitReport, WorkUnit, averaged_version
from raydense.fleets.collecting import SerialCollection
from raydense.planning.units import PromptSets
from raydense.training.stage_loop import StageState, run_stages

SETS = PromptSets(("a cat", "a dog"), ())
Log = list[tuple[Any, ...]]


class LoggingLearner:
    """Args: averages: whether it keeps an average, which is half of θ here."""

    def __init__(self, log: Log, averages: bool = False) -> None:
        self._log, self.step, self._averages = log, 0, averages

    def weights(self) -> PolicyWeights:
        return PolicyWeights.of(self.step, {"a": np.full(1, self.step, np.float32)})

    def averaged(self) -> PolicyWeights | None:
        half = {"a": np.full(1, self.step / 2, np.float32)}
        return PolicyWeights.of(averaged_version(self.step), half) if self._averages else None

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

    live = 1
    faults: Mapping[str, int] = MappingProxyType({})

    def __init__(self, log: Log, stale: bool = False) -> None:
        self._log, self._stale = log, stale
        self._weights: dict[int, PolicyWeights] = {}
        self.gone: set[str] = set()  # handles

    def broadcast(self, weights: PolicyWeights) -> None:
        self._weights[weights.version] = weights
        self._log.append(("broadcast", weights.version))

    def collect(self, units: Iterable[WorkUnit]) -> SerialCollection[str]:
        units = list(units)
        self._log.append(("collect", units[0].stage, [u.index for u in units], units[0].weights_version))
        return SerialCollection(self._sample(reversed(units)))

    def is_lost(self, handles: Sequence[str]) -> bool:
        return bool(self.gone & set(handles))

    def _sample(self, units: Iterable[WorkUnit]) -> Iterator[tuple[UnitReport, Sequence[str]]]:
        for unit in units:
            own = self._weights[unit.weights_version]
            weights = replace(own, version=99) if self._stale else own
            self.gone -= {f"s{unit.stage}g{g}" for g in unit.group_indices}
            metas = tuple(
                GroupMeta(unit.stage, g, p, (0.0,), {}, 1, weights.version, weights.checksum)
                for g, p in zip(unit.group_indices, unit.prompts, strict=True)
            )
            yield UnitReport(unit, metas), [f"s{unit.stage}g{g}" for g in unit.group_indices]

    def render(self, units: Any) -> Any: ...


class LoggingObserver:
    def __init__(self, log: Log) -> None:
        self._log, self.accounts = log, list[dict[str, int]]()

    def stage_started(self, stage: int, weights: PolicyWeights) -> None:
        self._log.append(("started", stage, weights.version))

    def unit_collected(self, report: UnitReport, done: int, total: int) -> None:
        self._log.append(("unit", report.unit.index, done, total))

    def stage_collected(
        self, stage: int, reports: Sequence[UnitReport], account: Mapping[str, int], again: bool
    ) -> None:
        self._log.append(
            ("again" if again else "collected", stage, [r.unit.index for r in reports], reports[0].unit.weights_version)
        )
        self.account = account

    def steps_taken(self, position: Position, metrics: Sequence[StepMetrics], state: StageState) -> None:
        known = (state.behaviour and state.behaviour.version, state.began and state.began.version)
        self._log.append(("step", position.stages, position.steps, metrics[-1].step, known, list(state.outstanding)))

    def stage_finished(
        self, stage: int, weights: PolicyWeights, account: Mapping[str, int], following: StageState
    ) -> None:
        self.accounts.append(dict(account))
        self._log.append(("finished", stage, weights.version, following.behaviour and following.behaviour.version))


@pytest.fixture
def config(small_config: Callable[..., Config]) -> Config:
    return small_config(stage={"count": 2, "groups": 3, "steps": 2}, train={"batch_groups": 2})


def test_a_whole_run_in_order(config: Config) -> None:
    log: Log = []
    final = run_stages(config, SETS, BackwardsFleet(log), LoggingLearner(log), LoggingObserver(log))
    assert log == [
        ("started", 0, 0),
        ("broadcast", 0),
        ("collect", 0, [0, 1], 0),
        ("unit", 1, 1, 2),
        ("unit", 0, 2, 2),
        ("collected", 0, [0, 1], 0),
        ("begin", 0, ["s0g0", "s0g1", "s0g2"]),
        ("train", 1),
        ("step", 0, 1, 1, (0, 0), []),
        ("train", 1),
        ("step", 0, 2, 2, (0, 0), []),
        ("broadcast", 2),
        ("begin", 1, []),
        ("finished", 0, 2, None),
        ("started", 1, 2),
        ("broadcast", 2),
        ("collect", 1, [0, 1], 2),
        ("unit", 1, 1, 2),
        ("unit", 0, 2, 2),
        ("collected", 1, [0, 1], 2),
        ("begin", 1, ["s1g0", "s1g1", "s1g2"]),
        ("train", 1),
        ("step", 1, 1, 3, (2, 2), []),
        ("train", 1),
        ("step", 1, 2, 4, (2, 2), []),
        ("broadcast", 4),
        ("begin", 2, []),
        ("finished", 1, 4, None),
    ]
    assert final.version == 4


@pytest.mark.parametrize("rollouts", [False, True])
def test_an_average_is_the_result_and_rolls_out_where_that_is_wanted(config: Config, rollouts: bool) -> None:
    log: Log = []
    train = config.train.model_copy(update={"ema": 0.9, "ema_rollouts": rollouts})
    learner = LoggingLearner(log, averages=True)
    config = config.model_copy(update={"train": train})
    final = run_stages(config, SETS, BackwardsFleet(log), learner, LoggingObserver(log))
    sampled = [entry[-1] for entry in log if entry[0] == "collected"]
    assert sampled == ([averaged_version(0), averaged_version(2)] if rollouts else [0, 2])
    assert [entry[2] for entry in log if entry[0] == "finished"] == [averaged_version(2), averaged_version(4)]
    assert (final.version, final.tensors["a"].tolist()) == (averaged_version(4), [2.0])


@pytest.fixture
def overlapped(small_config: Callable[..., Config]) -> Config:
    stage = {"count": 3, "groups": 3, "steps": 2, "schedule": "overlapped"}
    return small_config(stage=stage, train={"batch_groups": 2})


def test_overlapped_collects_the_next_stage_with_the_weights_that_this_one_began_with(overlapped: Config) -> None:
    log: Log = []
    run_stages(overlapped, SETS, BackwardsFleet(log), LoggingLearner(log), LoggingObserver(log))
    assert [entry for entry in log if entry[0] in ("collect", "collected", "begin", "step", "finished")] == [
        ("collect", 0, [0, 1], 0),
        ("collected", 0, [0, 1], 0),
        ("collect", 1, [0, 1], 0),  # before this stage's training begins
        ("begin", 0, ["s0g0", "s0g1", "s0g2"]),
        ("step", 0, 1, 1, (0, 0), [0, 1]),
        ("step", 0, 2, 2, (0, 0), [0, 1]),
        ("begin", 1, []),
        ("finished", 0, 2, 0),
        ("collected", 1, [0, 1], 0),  # one stage old
        ("collect", 2, [0, 1], 2),
        ("begin", 1, ["s1g0", "s1g1", "s1g2"]),
        ("step", 1, 1, 3, (0, 2), [0, 1]),
        ("step", 1, 2, 4, (0, 2), [0, 1]),
        ("begin", 2, []),
        ("finished", 1, 4, 2),
        ("collected", 2, [0, 1], 2),
        ("begin", 2, ["s2g0", "s2g1", "s2g2"]),  # and nothing is collected during the last stage
        ("step", 2, 1, 5, (2, 4), []),
        ("step", 2, 2, 6, (2, 4), []),
        ("begin", 3, []),
        ("finished", 2, 6, 4),
    ]


@pytest.mark.parametrize("position", [Position(1, 0), Position(1, 1), Position(2, 0)])
def test_an_overlapped_run_continues_with_the_versions_that_its_checkpoint_knows(
    overlapped: Config, position: Position
) -> None:
    def at(version: int) -> PolicyWeights:
        return PolicyWeights.of(version, {"a": np.full(1, version, np.float32)})

    whole: Log = []
    run_stages(overlapped, SETS, BackwardsFleet(whole), LoggingLearner(whole), LoggingObserver(whole))
    log: Log = []
    learner = LoggingLearner(log)
    learner.step = 2 * position.stages + position.steps
    behaviour, began = at(2 * (position.stages - 1)), at(2 * position.stages) if position.steps else None
    known = StageState(behaviour, began)
    run_stages(overlapped, SETS, BackwardsFleet(log), learner, LoggingObserver(log), position, known)
    steps = [entry for entry in log if entry[0] == "step"]
    assert steps == [entry for entry in whole if entry[0] == "step"][-len(steps) :]
    assert len(steps) == 6 - learner_steps(position)


def learner_steps(position: Position) -> int:
    return 2 * position.stages + position.steps


def test_a_run_continues_inside_a_stage_with_the_weights_that_stage_was_sampled_with(config: Config) -> None:
    log: Log = []
    learner = LoggingLearner(log)
    learner.step = 3
    behaviour = PolicyWeights.of(2, {"a": np.full(1, 2, np.float32)})
    known = StageState(behaviour, behaviour)
    final = run_stages(config, SETS, BackwardsFleet(log), learner, LoggingObserver(log), Position(1, 1), known)
    assert [entry for entry in log if entry[0] not in ("started", "unit", "begin", "collect")] == [
        ("broadcast", 2),
        ("again", 1, [0, 1], 2),  # not a second row in the metrics
        ("train", 1),
        ("step", 1, 2, 4, (2, 2), []),
        ("broadcast", 4),
        ("finished", 1, 4, None),
    ]
    assert final.version == 4


def test_a_group_of_other_weights_is_refused(config: Config) -> None:
    log: Log = []
    with pytest.raises(RuntimeError, match=r"sampled with weights version 99 .* not 0"):
        run_stages(config, SETS, BackwardsFleet(log, stale=True), LoggingLearner(log), LoggingObserver(log))
    assert not [entry for entry in log if entry[0] == "train"]


class LosingLearner(LoggingLearner):
    """Cannot read two groups before its second step: their node is gone."""

    def __init__(self, log: Log, fleet: BackwardsFleet) -> None:
        super().__init__(log)
        self._fleet = fleet
        self._loses = ["s0g0", "s0g2"]

    def train(self, num_steps: int) -> list[StepMetrics]:
        if self.step == 1 and self._loses:
            self._fleet.gone, self._loses = set(self._loses), []
        if self._fleet.gone:
            raise GroupsLost("gone")
        return super().train(num_steps)


def test_groups_that_went_with_their_node_are_collected_again_and_the_step_is_taken(config: Config) -> None:
    log: Log = []
    fleet, observer = BackwardsFleet(log), LoggingObserver(log)
    run_stages(config, SETS, fleet, LosingLearner(log, fleet), observer)
    first_stage = log[: log.index(("finished", 0, 2, None))]
    assert [entry for entry in first_stage if entry[0] in ("collect", "begin", "train")] == [
        ("collect", 0, [0, 1], 0),
        ("begin", 0, ["s0g0", "s0g1", "s0g2"]),
        ("train", 1),
        ("collect", 0, [0, 1], 0),  # both units had a group there
        ("begin", 0, ["s0g0", "s0g1", "s0g2"]),
        ("train", 1),
        ("begin", 1, []),
    ]
    assert [account["reissued"] for account in observer.accounts] == [2, 0]
    assert all(a["issued"] == a["finished"] == a["consumed"] == 2 for a in observer.accounts)
