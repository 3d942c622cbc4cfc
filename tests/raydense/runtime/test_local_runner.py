"""One process: the handle of a group is the group itself."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from raydense.config import Config
from raydense.core.types import RenderUnit, TrajectoryGroup
from raydense.runtime.build import build_learner, build_sampler
from raydense.runtime.local_runner import LocalFleet
from raydense.runtime.plan import stage_units


def test_the_fleet_samples_with_the_weights_that_were_broadcast(small_config: Callable[..., Config]) -> None:
    config = small_config()
    fleet = LocalFleet(build_sampler(config))
    with pytest.raises(RuntimeError, match="no weights were broadcast"):
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
    fleet, learner = LocalFleet(build_sampler(config)), build_learner(config, fetch=lambda groups: groups)
    fleet.broadcast(learner.weights())
    groups = [g for _, handles in fleet.collect(stage_units(config, ("a cat",), 0, 0)) for g in handles]
    learner.begin_stage(0, groups)
    (row,) = learner.train(1)
    # an untrained LoRA is the initial policy, on trajectories of the initial policy
    assert row.values["log_ratio_abs"] == 0.0
    assert row.values["loss"] == pytest.approx(np.log(2), rel=1e-6)
