"""One kernel samples and re-scores: with the weights that made it, a stored group's log-ratio is exactly 0."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from actors.sampler import rollout
from raydense.diffusion.kernel import gaussian_log_prob
from raydense.diffusion.policy import Policy
from raydense.families.conditioning import stacked

Prepared = tuple[Policy, torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module", params=["untrained", "trained"])
def prepare(
    request: pytest.FixtureRequest, make_policy: Callable[..., Policy], perturbed: Callable[..., Any]
) -> Callable[[float], Prepared]:
    """A policy, noise of 5 trajectories over two prompts, and their embeddings."""

    def build(guidance_scale: float) -> Prepared:
        policy = make_policy(guidance_scale=guidance_scale)
        if request.param == "trained":
            policy.bind(perturbed(policy))
        noise = torch.randn((5, 5, 4, 8, 8), generator=torch.Generator().manual_seed(0))
        embeds = stacked([policy.encode("a cat")] * 3 + [policy.encode("a dog")] * 2)
        return policy, noise, embeds

    return build


@pytest.mark.parametrize("as_the_learner", [True, False], ids=["with gradient", "without"])
@pytest.mark.parametrize("storage", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_a_stored_trajectory_rescored_by_its_own_weights_has_log_ratio_exactly_zero(
    prepare: Callable[[float], Prepared], guidance_scale: float, storage: torch.dtype, as_the_learner: bool
) -> None:
    policy, noise, embeds = prepare(guidance_scale)
    latents, stored = rollout(policy, noise, embeds, storage)
    assert latents.dtype == storage
    for step in range(4):
        t = torch.full((5,), step)
        with nullcontext() if as_the_learner else torch.no_grad():
            again = policy.log_prob(latents[:, step], latents[:, step + 1], t, embeds)
        assert again.requires_grad == as_the_learner
        assert torch.equal(again.detach(), stored[:, step]), f"step {step}"


def test_the_rounded_state_is_what_is_scored_and_fed_on(prepare: Callable[[float], Prepared]) -> None:
    policy, noise, embeds = prepare(1.0)
    latents, log_probs = rollout(policy, noise, embeds, torch.float16)
    assert torch.equal(latents[:, 0], noise[:, 0].half())
    with torch.no_grad():
        for step in range(4):
            mean, sigma, _ = policy.transition(latents[:, step], torch.full((5,), step), embeds)
            exact = mean + sigma * noise[:, step + 1]
            assert torch.equal(latents[:, step + 1], exact.half())
            assert torch.equal(log_probs[:, step], gaussian_log_prob(exact.half(), mean, sigma))
            assert not torch.equal(log_probs[:, step], gaussian_log_prob(exact, mean, sigma))


def test_a_step_under_other_weights_has_another_density(
    make_policy: Callable[..., Policy], perturbed: Callable[..., Any], prepare: Callable[[float], Prepared]
) -> None:
    policy, noise, embeds = prepare(3.0)
    latents, stored = rollout(policy, noise, embeds, torch.float16)
    policy.bind(perturbed(policy, seed=9))
    with torch.no_grad():
        again = policy.log_prob(latents[:, 1], latents[:, 2], torch.ones(5, dtype=torch.int64), embeds)
    assert float((again - stored[:, 1]).abs().min()) > 1e-3
