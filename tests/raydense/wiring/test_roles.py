"""Sampler and learner, as a configuration names their parts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from raydense.config import Config
from raydense.families.family import ATTENTION
from raydense.planning.preflight import check_inputs
from raydense.wiring.roles import build_learner, build_sampler


def test_a_pipeline_that_was_read_is_not_read_again(
    small_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = check_inputs(small_config())
    monkeypatch.setattr("raydense.wiring.policies.read_pipeline", lambda *_, **__: pytest.fail("it was read again"))
    sampler = build_sampler(inputs.config, files=inputs.pipeline)
    learner = build_learner(inputs.config, fetch=lambda groups: groups, files=inputs.pipeline)
    assert sampler._policy.family.files == learner.policy.family.files == inputs.pipeline


def test_what_a_configuration_leaves_to_its_pipeline_is_found_once(small_config: Callable[..., Config]) -> None:
    config = small_config(steps={"exclude_last": None}, policy={"lora_targets": None})
    found = check_inputs(config).config
    left = (config.steps.dynamics, config.steps.exclude_last, config.policy.lora_targets)
    assert left == (None, None, None)
    assert (found.steps.dynamics, found.steps.exclude_last, found.policy.lora_targets) == ("ddim", 0, ATTENTION)
