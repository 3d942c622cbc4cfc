"""The rivals' objectives give the published form's loss and gradient; `make_rivals.py` says which, and writes them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from learner.clips import FixedClip
from learner.rival_objectives import DiffusionDPO, PolicyGradient
from learner.transitions import gather_noised, gather_transitions
from raydense.diffusion.noising import make_noise_levels

LOSS = 1e-5
GRADIENT = 5e-5  # relative to its norm


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent)
        yield importlib.import_module("make_rivals")


def ours(script: Any, rival: str, policy: Any) -> Any:
    inputs = load_file(script.TRAJECTORIES)
    groups = [script.make_group(policy, i, inputs) for i in range(len(script.PROMPTS))]
    if rival == "policy_gradient":
        objective: Any = PolicyGradient(policy, FixedClip(script.CLIP), kl=script.KL)
        batch: Any = gather_transitions(script.PLAN, groups)
    else:
        levels = make_noise_levels(script.SCHEDULER)
        objective = DiffusionDPO(policy, levels, beta=script.BETA, ties="random")
        batch = gather_noised(script.PAIRS, groups, levels)
    objective.begin_step(0, {})
    return objective.loss(batch)[0]


@pytest.mark.parametrize("rival", ["policy_gradient", "diffusion_dpo"])
def test_loss_and_gradient_are_the_published_ones(rival: str, script: Any) -> None:
    golden = {n.removeprefix(f"{rival}/"): v for n, v in load_file(script.FILE).items() if n.startswith(rival)}
    policy = script.make_policy()
    script.bind(policy, "new")
    found = script.loss_and_gradient(policy, ours(script, rival, policy))
    assert found.keys() == golden.keys()
    np.testing.assert_allclose(found["loss"], golden["loss"], rtol=LOSS)
    names = sorted(name for name in golden if name != "loss")
    assert len(names) == 64
    expected, actual = (np.concatenate([of[n].ravel() for n in names]).astype(np.float64) for of in (golden, found))
    assert np.linalg.norm(expected) > 1e-3
    assert np.linalg.norm(actual - expected) <= GRADIENT * np.linalg.norm(expected)
