"""What is told by denoising step: against a backward pass to an own output of the network for every draw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from learner import objective, rival_objectives
from learner.by_step import BY_DRAW, ByStepReader
from learner.clips import FixedClip
from learner.losses import plackett_luce_loss
from learner.objective import DensePreference
from learner.references import ReferenceCache
from learner.rival_objectives import PolicyGradient
from learner.rivals import clipped_surrogate
from learner.transitions import TransitionBatch
from raydense.core.types import TrajectoryGroup
from raydense.diffusion.kernel import gaussian_log_prob, transition
from raydense.diffusion.policy import Policy

C, CLIP = 10.0, 0.02
Drawn = dict[tuple[int, int, int], Any]  # by tuple, trajectory and draw
KINDS: dict[str, Callable[[Policy], Any]] = {
    "dense preference": lambda policy: DensePreference(
        policy,
        ReferenceCache(policy, 5, keep=4),
        FixedClip(CLIP),
        c=C,
        ties="random",
        balance=None,
        to_init=False,
        to_old=True,
        warm_up_steps=0,
    ),
    "policy gradient": lambda policy: PolicyGradient(policy, FixedClip(CLIP), kl=0.5),
}


def of_own_outputs(policy: Policy, batch: TransitionBatch) -> tuple[Drawn, torch.Tensor]:
    """The network's guided output of each draw, as if no other draw had it, and log π of them: [B, n, S]."""
    outputs: Drawn = {}
    log_probs = torch.zeros(batch.draws.shape)
    for place in np.ndindex(*batch.draws.shape):
        one = batch.draws[place][None]
        with torch.no_grad():
            outputs[place] = policy.predict(*batch.given(one))
        outputs[place].requires_grad_()
        mean, sigma, _ = transition(policy.schedule, batch.x_t[one], outputs[place], batch.t[one])
        log_probs[place] = gaussian_log_prob(batch.x_next[one], mean, sigma)[0]
    return outputs, log_probs


def slow_loss(kind: str, log_probs: torch.Tensor, batch: TransitionBatch) -> torch.Tensor:
    ratio = log_probs - batch.old_log_probs
    if kind == "policy gradient":  # its divergence is no part of what is told
        return clipped_surrogate(ratio.exp(), batch.advantages, CLIP).mean()
    logits = C * ratio.clamp(-CLIP, CLIP).mean(-1)
    return plackett_luce_loss(logits, batch.rewards, batch.tie_noise).mean()


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_gradient_at_the_networks_output_and_the_spread_before_the_clip(
    kind: str, policy: Policy, groups: list[TrajectoryGroup], make_batch: Callable[..., TransitionBatch]
) -> None:
    batch, loss = make_batch(groups, tuple_size=3, step_draws=3), KINDS[kind](policy)
    loss.begin_step(0, {})
    _, values = loss.loss(batch)
    _, told = loss.end_step(batch.plan, {name: value.numpy() for name, value in values.items()})

    outputs, log_probs = of_own_outputs(policy, batch)
    slow_loss(kind, log_probs, batch).backward()  # type: ignore[no-untyped-call]
    ratio = (log_probs.detach() - batch.old_log_probs).numpy()
    width = np.expm1(ratio) if kind == "policy gradient" else ratio
    steps = {place: int(batch.plan.steps[place[0], place[2]]) for place in outputs}
    assert len(set(steps.values())) > 2
    norms = {place: float(output.grad.norm()) for place, output in outputs.items()}
    assert 0 < sum(norm == 0 for norm in norms.values()) < len(norms)  # some are clipped
    for step in range(4):
        drawn = [place for place in outputs if steps[place] == step]
        for name, of_each in (("gradient", norms), ("spread", width)):
            expected = np.sqrt(np.mean([of_each[place] ** 2 for place in drawn])) if drawn else None
            assert told[name][step] == (None if expected is None else pytest.approx(expected, rel=2e-3, abs=1e-7))


def test_micro_batches_tell_the_same(
    make_policy: Callable[..., Policy], make_learner: Any, groups: Any, perturbed: Any
) -> None:
    told = []
    for size in (None, 1):
        policy = make_policy()
        policy.bind(perturbed(policy, scale=0.03))
        learner = make_learner(policy, micro_batch=size, batch_groups=3)
        learner.begin_stage(0, groups)
        told.append(learner.train(1)[0].by_step)
    assert told[0].keys() == told[1].keys() == {"clipped", "spread", "gradient"}
    for name in ("spread", "gradient"):
        expected = [value if value is None else pytest.approx(value, rel=1e-3) for value in told[0][name]]
        assert list(told[1][name]) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_it_moves_no_bit_of_what_is_learned(
    kind: str,
    make_policy: Callable[..., Policy],
    make_learner: Any,
    groups: Any,
    perturbed: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for measured in (True, False):
        if not measured:
            for module in (objective, rival_objectives):
                monkeypatch.setattr(module, "slopes", lambda loss, log_probs: torch.zeros_like(log_probs))
        policy = make_policy()
        policy.bind(perturbed(policy, scale=0.03))
        learner = make_learner(policy, objective=KINDS[kind])
        learner.begin_stage(0, groups)
        rows = learner.train(3)
        assert any(rows[-1].by_step["gradient"]) == measured
        found.append((learner.weights().checksum, [row.values for row in rows]))
    assert found[0] == found[1]


def test_what_is_no_number_is_told_as_none(policy: Policy, groups: Any, make_batch: Any) -> None:
    """A row of metrics is JSON, and a gradient step without a finite loss is told, too, before it is skipped."""
    plan = make_batch(groups).plan
    measured = {name: np.full((3, 2, 2), np.nan, np.float32) for name in BY_DRAW}
    told = ByStepReader.of(policy).read(plan, measured)
    assert told == {"spread": (None,) * 4, "gradient": (None,) * 4}
