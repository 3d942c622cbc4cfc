"""The rivals' objectives against loops over tuples, trajectories and draws, one network call each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from learner.batching import draw_batch, with_noise
from learner.clips import AutoClip, FixedClip
from learner.objective import Measured
from learner.rival_objectives import DiffusionDPO, PolicyGradient
from learner.sgd_learner import SGDLearner
from learner.transitions import NoisedBatch, TransitionBatch, gather_noised
from raydense.core.types import TrajectoryGroup, stored_states
from raydense.diffusion.noising import NoiseLevels, make_noise_levels
from raydense.diffusion.policy import Policy

CLIP, KL, BETA = 0.02, 0.5, 20.0


@pytest.fixture(scope="module")
def levels(policy: Policy) -> NoiseLevels:
    return make_noise_levels(policy.family.files["scheduler"] or {})


def noised(groups: list[TrajectoryGroup], levels: NoiseLevels, seed: int = 0, ties: Any = "random") -> NoisedBatch:
    plan = draw_batch(
        torch.arange(len(groups)),
        torch.stack([torch.tensor(g.rewards) for g in groups]),
        levels.weights,
        tuple_size=2,
        tuples=1,
        tuple_choice="random",
        ties=ties,
        step_draws=2,
        draws=torch.Generator().manual_seed(seed),
    )
    return gather_noised(with_noise(plan, groups[0].latents.shape[2:], seed, 0), groups, levels)


def one(policy: Policy, batch: Any, b: int, drawn: int) -> tuple[Any, ...]:
    given = {name: tensor[b][None] for name, tensor in batch.conditioning.items()}
    return batch.x_t[drawn][None], batch.t[drawn][None], given


def metrics(values: Any) -> Measured:
    return {name: value.numpy() for name, value in values.items()}


# -- policy gradient ------------------------------------------------------------------------------------------


def slow_policy_gradient(
    policy: Policy, batch: TransitionBatch, groups: list[TrajectoryGroup], kl: float
) -> list[float]:
    losses = []
    for b, group in enumerate(groups):
        rewards = group.rewards.astype(float)
        terms = []
        for i, k in enumerate(batch.plan.trajectories[b].tolist()):
            advantage = (rewards[k] - rewards.mean()) / (rewards.std() + 1e-4)  # of all four, though three are drawn
            for s, t in enumerate(batch.plan.steps[b].tolist()):
                x_t, where, given = one(policy, batch, b, int(batch.draws[b, i, s]))
                x_next = torch.from_numpy(group.latents[k, t + 1].copy())[None]
                with torch.no_grad():
                    ratio = math.exp(float(policy.log_prob(x_t, x_next, where, given)) - float(group.log_probs[k, t]))
                    mean, sigma, _ = policy.transition(x_t, where, given)
                    with policy.reference():
                        initial, _, _ = policy.transition(x_t, where, given)
                divergence = float(((mean - initial) ** 2).mean() / (2 * sigma**2))
                clipped = min(max(ratio, 1 - CLIP), 1 + CLIP)
                terms.append(max(-advantage * ratio, -advantage * clipped) + kl * divergence)
        losses.append(float(np.mean(terms)))
    return losses


@pytest.mark.parametrize("kl", [0.0, KL])
def test_the_policy_gradient_matches_the_slow_reference(
    kl: float, policy: Policy, groups: list[TrajectoryGroup], make_batch: Callable[..., TransitionBatch]
) -> None:
    batch, objective = make_batch(groups, tuple_size=3), PolicyGradient(policy, FixedClip(CLIP), kl=kl)
    objective.begin_step(0, {})
    loss, values = objective.loss(batch)
    np.testing.assert_allclose(loss.detach(), slow_policy_gradient(policy, batch, groups, kl), rtol=1e-4, atol=2e-5)
    found, by_step = objective.end_step(batch.plan, metrics(values))
    assert ("kl" in found) == (kl > 0)
    assert 0.1 < found["log_ratio/clip_fraction"] < 0.9  # both sides of the clip are tested
    assert sum(by_step["clipped"]) == round(found["log_ratio/clip_fraction"] * batch.draws.numel())


def test_the_advantages_are_of_the_whole_group(
    groups: list[TrajectoryGroup], make_batch: Callable[..., TransitionBatch]
) -> None:
    batch = make_batch(groups, tuple_size=2)
    for b, group in enumerate(groups):
        rewards = group.rewards.astype(float)
        whole = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
        np.testing.assert_allclose(batch.advantages[b], whole[batch.plan.trajectories[b]], rtol=1e-5)


def test_equal_rewards_pull_at_nothing(
    policy: Policy, groups: list[TrajectoryGroup], make_batch: Callable[..., TransitionBatch]
) -> None:
    equal = [replace(group, rewards=np.zeros_like(group.rewards)) for group in groups]
    objective = PolicyGradient(policy, FixedClip(CLIP), kl=0.0)
    objective.begin_step(0, {})
    loss, _ = objective.loss(make_batch(equal))
    policy.network.zero_grad(set_to_none=True)
    loss.sum().backward()
    assert loss.tolist() == [0.0] * len(groups)
    assert not any(p.grad.any() for p in policy.parameters() if p.grad is not None)


def test_training_makes_what_scored_better_likelier(
    make_policy: Callable[..., Policy], make_groups: Callable[..., Any], make_learner: Callable[..., Any]
) -> None:
    policy = make_policy()
    learner = make_learner(
        policy,
        objective=lambda policy: PolicyGradient(policy, FixedClip(0.1), kl=0.0),
        lr=3e-3,
        batch_groups=5,
        tuple_size=4,
        ties="random",
    )
    learner.begin_stage(0, make_groups(policy, count=5, keep=4))
    rows = learner.train(12)
    assert rows[0].values["ratio/mean"] == pytest.approx(1.0, abs=1e-5)
    assert rows[0].values["log_ratio/old_abs_mean"] < 1e-5
    assert np.mean([row.values["loss"] for row in rows[-3:]]) < rows[0].values["loss"] - 1e-3
    assert np.mean([row.values["pair_accuracy"] for row in rows[-3:]]) > 0.6


# -- Diffusion-DPO --------------------------------------------------------------------------------------------


def slow_diffusion_dpo(
    policy: Policy, batch: NoisedBatch, groups: list[TrajectoryGroup], scheduler: Any
) -> list[float]:
    """As the published script: diffusers' own noising, one conditional prediction a call, plain arithmetic."""
    assert batch.plan.noise is not None
    losses = []
    for b, group in enumerate(groups):
        pair = batch.plan.trajectories[b].tolist()
        w, lose = sorted(pair, key=lambda k: group.rewards[k], reverse=True)
        inside = []
        for s, t in enumerate(batch.plan.steps[b].tolist()):
            noise, difference = batch.plan.noise[b, s][None], {}
            for k in (w, lose):
                clean = torch.from_numpy(group.latents[k, -1].astype(np.float32))[None]
                noisy = scheduler.add_noise(clean, noise, torch.tensor([t]))
                states = torch.from_numpy(group.conditioning["prompt_embeds"])[None]
                with torch.no_grad():
                    predicted = policy.network(noisy, torch.tensor([t]), states).sample
                    with policy.reference():
                        initial = policy.network(noisy, torch.tensor([t]), states).sample
                difference[k] = float(((predicted - noise) ** 2).mean() - ((initial - noise) ** 2).mean())
            inside.append(-0.5 * BETA * (difference[w] - difference[lose]))
        losses.append(float(np.mean([math.log1p(math.exp(-value)) for value in inside])))
    return losses


def test_diffusion_dpo_matches_the_slow_reference(
    policy: Policy, groups: list[TrajectoryGroup], levels: NoiseLevels
) -> None:
    from diffusers import DDPMScheduler

    batch, objective = noised(groups, levels), DiffusionDPO(policy, levels, beta=BETA, ties="random")
    loss, values = objective.loss(batch)
    expected = slow_diffusion_dpo(policy, batch, groups, DDPMScheduler.from_config(policy.family.files["scheduler"]))
    np.testing.assert_allclose(loss.detach(), expected, rtol=1e-4)
    assert float((loss.detach() - math.log(2)).abs().min()) > 1e-4  # there is something to compare
    found, by_step = objective.end_step(batch.plan, metrics(values))
    assert by_step == {}
    assert 0 <= found["implicit_accuracy"] <= 1
    assert found["error/model"] != found["error/initial"]


def test_a_pair_shares_its_levels_and_its_noise(groups: list[TrajectoryGroup], levels: NoiseLevels) -> None:
    batch = noised(groups, levels)
    signal, amount = (table[batch.t][:, None, None, None] for table in (levels.signal, levels.noise))
    for b, group in enumerate(groups):
        for s in range(2):
            here = [int(batch.draws[b, i, s]) for i in range(2)]
            assert batch.t[here[0]] == batch.t[here[1]]
            left = []
            for drawn, k in zip(here, batch.plan.trajectories[b].tolist(), strict=True):
                clean = torch.from_numpy(group.latents[k, -1].astype(np.float32))
                left.append((batch.x_t[drawn] - signal[drawn] * clean) / amount[drawn])
            torch.testing.assert_close(left[0], left[1], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(left[0], batch.target[here[0]], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("drawn", [range(1, 3), range(2), range(4)], ids=str)
def test_the_final_latents_are_found_whichever_states_are_stored(
    drawn: range, groups: list[TrajectoryGroup], levels: NoiseLevels
) -> None:
    stored = stored_states(drawn, 4)
    fewer = [replace(group, latents=group.latents[:, stored], first_step=drawn.start) for group in groups]
    assert torch.equal(noised(fewer, levels).x_t, noised(groups, levels).x_t)


def test_a_tied_pair_costs_nothing_unless_ties_are_broken_at_random(
    policy: Policy, groups: list[TrajectoryGroup], levels: NoiseLevels
) -> None:
    equal = [replace(group, rewards=np.zeros_like(group.rewards)) for group in groups[:1]] + groups[1:]
    batch = noised(equal, levels)
    marginal, random = (DiffusionDPO(policy, levels, beta=BETA, ties=t).loss(batch)[0] for t in ("marginal", "random"))
    assert marginal[0] == 0
    assert random[0] > 0
    assert torch.equal(marginal[1:], random[1:])


def test_an_untrained_lora_costs_ln_2_to_the_last_bit(
    make_policy: Callable[..., Policy], groups: list[TrajectoryGroup], levels: NoiseLevels
) -> None:
    loss, values = DiffusionDPO(make_policy(), levels, beta=5000.0, ties="random").loss(noised(groups, levels))
    np.testing.assert_allclose(loss.detach(), math.log(2), rtol=1e-6)
    assert torch.equal(values["error/model"], values["error/initial"])
    assert values["pair_accuracy"].tolist() == [0.5] * 3


def test_training_prefers_the_winner(
    make_policy: Callable[..., Policy],
    make_groups: Callable[..., Any],
    make_learner: Callable[..., Any],
    levels: NoiseLevels,
) -> None:
    policy = make_policy()
    learner = make_learner(
        policy,
        objective=lambda policy: DiffusionDPO(policy, levels, beta=200.0, ties="marginal"),
        levels=levels,
        lr=3e-3,
        batch_groups=5,
        tuple_choice="best_worst",
    )
    learner.begin_stage(0, make_groups(policy, count=5, keep=4))
    rows = learner.train(15)
    assert rows[0].values["loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert np.mean([row.values["loss"] for row in rows[-3:]]) < math.log(2) - 0.01


# -- both, in a learner ---------------------------------------------------------------------------------------

KINDS: dict[str, Callable[[NoiseLevels], tuple[Callable[[Policy], Any], dict[str, Any]]]] = {
    "policy gradient": lambda _: (lambda policy: PolicyGradient(policy, FixedClip(CLIP), kl=KL), {}),
    "policy gradient, auto": lambda _: (lambda policy: PolicyGradient(policy, AutoClip(4, 0.3, 0.0), kl=0.0), {}),
    "diffusion dpo": lambda levels: (
        lambda policy: DiffusionDPO(policy, levels, beta=BETA, ties="marginal"),
        {"levels": levels},
    ),
}


@pytest.fixture
def begin(
    make_policy: Callable[..., Policy],
    make_learner: Callable[..., Any],
    perturbed: Callable[..., Any],
    groups: Any,
    levels: NoiseLevels,
) -> Callable[..., SGDLearner[TrajectoryGroup]]:
    def start(kind: str, **changes: Any) -> SGDLearner[TrajectoryGroup]:
        policy = make_policy()
        policy.bind(perturbed(policy, scale=0.03))
        objective, options = KINDS[kind](levels)
        learner: SGDLearner[TrajectoryGroup] = make_learner(policy, objective=objective, **options, **changes)
        learner.begin_stage(0, groups)
        return learner

    return start


@pytest.mark.parametrize("kind", KINDS)
def test_a_learner_that_is_cut_and_restored_takes_the_same_steps(kind: str, begin: Any) -> None:
    whole, cut, restored = begin(kind), begin(kind), begin(kind)
    rows = whole.train(4)
    assert cut.train(2) == rows[:2]
    restored.load_state_dict(cut.state_dict())
    assert restored.train(2) == rows[2:]
    assert restored.weights().checksum == whole.weights().checksum != begin(kind).weights().checksum


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_give_the_whole_batchs_step(kind: str, begin: Any) -> None:
    (whole,), (parts,) = (begin(kind, micro_batch=size, batch_groups=3).train(1) for size in (None, 2))
    assert parts.values == {name: pytest.approx(value, rel=2e-4, abs=1e-6) for name, value in whole.values.items()}


@pytest.mark.parametrize(
    ("kind", "forward", "trained"),
    [("policy gradient", 2, 2), ("policy gradient, auto", 0, 2), ("diffusion dpo", 1, 1)],
)
def test_rows_are_counted_as_the_network_is_called(
    kind: str, forward: int, trained: int, begin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows a latent: two under guidance, one without."""
    learner, rows = begin(kind), {True: 0, False: 0}
    unet = learner.policy.network.forward

    def count(x: torch.Tensor, *rest: Any) -> Any:
        rows[torch.is_grad_enabled()] += len(x)
        return unet(x, *rest)

    monkeypatch.setattr(learner.policy.network, "forward", count)
    told = learner.train(3)
    assert {name: sum(row.network_rows[name] for row in told) for name in ("forward", "trained")} == {
        "forward": rows[False],
        "trained": rows[True],
    }
    assert rows[False] * trained == rows[True] * forward
    assert rows[True] > 0
