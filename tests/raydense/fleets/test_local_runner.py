"""One process: the handle of a group is the group itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from raydense.config import Config
from raydense.core.interfaces import MAX_UNIT_FAILURES, UnitFailed
from raydense.core.types import PolicyWeights, RenderUnit, TrajectoryGroup, WorkUnit
from raydense.fleets.local_runner import LocalFleet
from raydense.planning.units import stage_units
from raydense.wiring.roles import build_learner, build_sampler


def test_the_fleet_samples_with_the_weights_that_were_broadcast(small_config: Callable[..., Config]) -> None:
    config = small_config()
    fleet = LocalFleet(build_sampler(config), run_seed=3)
    with pytest.raises(RuntimeError, match="weights version 0 is not live; broadcast it"):
        fleet.render([RenderUnit(("a cat",), (0,), 0)])
    weights = build_learner(config, fetch=lambda groups: groups).weights()
    fleet.broadcast(weights)
    units = stage_units(config, ("a cat", "a dog"), 0, 0)
    arrivals = list(fleet.collect(units))
    assert [report.unit for report, _ in arrivals] == units
    groups = [group for _, handles in arrivals for group in handles]
    assert all(isinstance(group, TrajectoryGroup) for group in groups)
    assert {group.weights_checksum for group in groups} == {weights.checksum}


def test_sampler_and_learner_start_from_the_same_weights(small_config: Callable[..., Config]) -> None:
    config = small_config()
    fleet, learner = LocalFleet(build_sampler(config), run_seed=3), build_learner(config, fetch=lambda groups: groups)
    fleet.broadcast(learner.weights())
    groups = [g for _, handles in fleet.collect(stage_units(config, ("a cat",), 0, 0)) for g in handles]
    learner.begin_stage(0, groups)
    (row,) = learner.train(1)
    # an untrained LoRA is the initial policy, on trajectories of the initial policy
    assert row.values["log_ratio/abs_mean"] == 0.0
    assert row.values["loss"] == pytest.approx(np.log(2), rel=1e-6)


class FailingSampler:
    """Fails the first times; then answers with nothing of interest."""

    def __init__(self, failures: int) -> None:
        self.calls, self._failures = 0, failures

    def sample(self, unit: Any, weights: Any) -> Any:
        self.calls += 1
        if self.calls <= self._failures:
            raise OSError("the judge is out")
        return unit, []

    render = sample


@pytest.mark.parametrize("failures", [0, 1, MAX_UNIT_FAILURES - 1])
def test_a_unit_that_failed_is_tried_again(failures: int) -> None:
    sampler = FailingSampler(failures)
    fleet = LocalFleet(sampler, run_seed=3)
    fleet.broadcast(PolicyWeights.of(0, {}))
    units = [WorkUnit(0, index, (index,), ("a cat",), 0) for index in range(2)]
    assert [unit for unit, _ in fleet.collect(units)] == units
    assert (fleet.faults["retried"], sampler.calls) == (failures, failures + 2)


def test_a_unit_that_always_fails_ends_the_run_with_its_cause() -> None:
    fleet = LocalFleet(FailingSampler(MAX_UNIT_FAILURES), run_seed=3)
    fleet.broadcast(PolicyWeights.of(0, {}))
    with pytest.raises(
        UnitFailed, match=r"^the judge is out \(pictures \[5\], run seed 3, prompts 'a cat'; tried 3 times\)$"
    ):
        fleet.render([RenderUnit(("a cat",), (5,), 0)])
