"""The batched objective against a loop over tuples, trajectories and steps, one transition at a time."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch._subclasses.fake_tensor import FakeTensorMode

from learner import losses, objective
from learner.batching import BatchDraws
from learner.objective import batch_metrics, preference_loss
from learner.references import ReferenceCache
from learner.transitions import TransitionBatch, gather_transitions
from raydense.core.types import TrajectoryGroup
from raydense.diffusion.policy import Policy
from raydense.families.conditioning import each

C, CLIP = 10.0, 0.02
CASES = {"initial policy": ("init",), "behaviour policy": ("old",), "both": ("init", "old"), "warm-up": ()}


def batched_loss(
    policy: Policy, batch: TransitionBatch, case: str, clip: float = CLIP, ties: Any = "random"
) -> tuple[torch.Tensor, Any]:
    """With the references of a case: the loss of each tuple, and the batch's metrics."""
    log_probs = {"init": ReferenceCache(policy, groups=5, keep=4).look_up(batch), "old": batch.old_log_probs}
    references = [log_probs[name] for name in CASES[case]]
    loss, values = preference_loss(policy, batch, references, c=C, clip=clip, ties=ties)
    return loss, batch_metrics({name: value.numpy() for name, value in values.items()})


def test_metrics_are_means_over_tuples_the_largest_ratio_and_the_spread_of_all_logits() -> None:
    logits = np.array([[1.0, 5.0], [2.0, -3.0]], np.float32)
    found = batch_metrics({"loss": np.float32([1, 2]), "log_ratio/abs_max": np.float32([3, 1]), "logit_std": logits})
    assert found == {"loss": 1.5, "log_ratio/abs_max": 3.0, "logit_std": pytest.approx(statistics.stdev([1, 5, 2, -3]))}


def slow_preference_loss(policy: Policy, batch: TransitionBatch, case: str) -> list[float]:
    """METHOD §4, literally."""
    losses = []
    for b in range(len(batch)):
        z = []
        for k in range(batch.draws.shape[1]):
            ratios = []
            for s, drawn in enumerate(batch.draws[b, k].tolist()):
                given = {name: tensor[b][None] for name, tensor in batch.conditioning.items()}
                one = (batch.x_t[drawn][None], batch.x_next[drawn][None], batch.t[drawn][None])
                with torch.no_grad():
                    now = float(policy.log_prob(*one, given))
                    with policy.reference():
                        initial = float(policy.log_prob(*one, given))
                of = {"init": initial, "old": float(batch.old_log_probs[b, k, s])}
                clipped = [float(np.clip(now - of[name], -CLIP, CLIP)) for name in CASES[case]]
                ratios.append(sum(clipped) if clipped else now)
            z.append(C * float(np.mean(ratios)))
        order = sorted(range(len(z)), key=lambda k: (batch.rewards[b, k], batch.tie_noise[b, k]), reverse=True)
        ranked = [z[k] for k in order]
        losses.append(sum(logsumexp(ranked[i:]) - ranked[i] for i in range(len(ranked))))
    return losses


@pytest.mark.parametrize("tuple_size", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_the_loss_matches_the_slow_reference(
    case: str,
    tuple_size: int,
    policy: Policy,
    groups: list[TrajectoryGroup],
    make_batch: Callable[..., TransitionBatch],
) -> None:
    batch = make_batch(groups, tuple_size=tuple_size)
    loss, metrics = batched_loss(policy, batch, case)
    expected = slow_preference_loss(policy, batch, case)
    np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=1e-5, atol=2e-5)
    assert float(metrics["loss"]) == pytest.approx(np.mean(expected), rel=1e-5)


@pytest.mark.parametrize("tuple_size", [2, 3])
def test_without_ties_the_loss_and_its_gradient_are_the_same_to_the_last_bit(
    tuple_size: int, policy: Policy, groups: list[TrajectoryGroup], make_batch: Callable[..., TransitionBatch]
) -> None:
    found = []
    for ties in ("random", "marginal"):
        policy.network.zero_grad(set_to_none=True)
        loss, metrics = batched_loss(policy, make_batch(groups, tuple_size=tuple_size), "both", ties=ties)
        loss.mean().backward()
        found.append((loss, [p.grad.clone() for p in policy.parameters() if p.grad is not None]))
        assert float(metrics["reward/ties"]) == 0
    (first, gradients), (second, others) = found
    assert torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))
    assert any(g.any() for g in gradients)


def test_tied_tuples_are_counted_and_pull_only_as_far_as_they_are_ordered(
    policy: Policy, groups: list[TrajectoryGroup], make_batch: Callable[..., TransitionBatch]
) -> None:
    equal, partly, ordered = (
        replace(group, rewards=np.array(rewards, np.float32))
        for group, rewards in zip(groups, ([1, 1, 1, 1], [1, 0, 1, 0], [3, 1, 2, 0]), strict=True)
    )
    batch = make_batch([equal, partly, ordered], tuple_size=3)
    random, _ = batched_loss(policy, batch, "initial policy")
    marginal, metrics = batched_loss(policy, batch, "initial policy", ties="marginal")
    assert float(metrics["reward/ties"]) == pytest.approx(2 / 3)
    assert float(metrics["loss"]) == pytest.approx(marginal.mean().item())
    assert marginal[0].item() == 0.0
    assert 0 < marginal[1].item() < random[1].item()  # the order that was drawn is one of two
    assert marginal[2].item() == random[2].item()


def test_a_steps_clipped_ratio_is_weighed_by_its_balance(
    policy: Policy, groups: list[TrajectoryGroup], make_batch: Callable[..., TransitionBatch]
) -> None:
    batch, balance = make_batch(groups), torch.tensor([0.1, 0.5, 2.0, 4.0])
    reference = ReferenceCache(policy, groups=5, keep=4).look_up(batch)
    loss, _ = preference_loss(policy, batch, [reference], c=C, clip=CLIP, ties="random", balance=balance)
    with torch.no_grad():
        now = policy.log_prob(batch.x_t, batch.x_next, batch.t, each(batch.conditioning, lambda rows: rows[batch.row]))
    ratios = (now[batch.draws] - reference).clamp(-CLIP, CLIP).numpy()
    z = C * (ratios * balance.numpy()[batch.t.numpy()[batch.places]]).mean(-1)
    order = np.lexsort((batch.tie_noise.numpy(), batch.rewards.numpy()))
    worst, best = np.take_along_axis(z, order, 1).T
    np.testing.assert_allclose(loss.detach().numpy(), np.log1p(np.exp(worst - best)), rtol=1e-5)
    plain, _ = preference_loss(policy, batch, [reference], c=C, clip=CLIP, ties="random")
    assert float((plain - loss).detach().abs().max()) > 1e-3


def test_the_cases_test_both_sides_of_the_clip(
    policy: Policy, groups: list[TrajectoryGroup], make_batch: Callable[..., TransitionBatch]
) -> None:
    _, metrics = batched_loss(policy, make_batch(groups), "both")
    assert 0.1 < float(metrics["log_ratio/clip_fraction"]) < 0.9


def test_the_gradient_reaches_the_lora_alone(
    make_policy: Callable[..., Policy],
    perturbed: Callable[..., Any],
    groups: list[TrajectoryGroup],
    make_batch: Callable[..., TransitionBatch],
) -> None:
    policy = make_policy()
    policy.bind(perturbed(policy, scale=0.05))
    loss, _ = batched_loss(policy, make_batch(groups), "initial policy", clip=10.0)
    loss.sum().backward()
    with_gradient = {name for name, p in policy.network.named_parameters() if p.grad is not None}
    assert with_gradient == set(policy.weights().tensors)
    assert all(p.grad is None for p in policy.texts["text_encoder"].network.parameters())
    assert all(float(p.grad.abs().max()) > 0 for p in policy.parameters() if p.grad is not None)


def test_the_gradient_is_zero_where_every_ratio_is_clipped(
    make_policy: Callable[..., Policy],
    perturbed: Callable[..., Any],
    groups: list[TrajectoryGroup],
    make_batch: Callable[..., TransitionBatch],
) -> None:
    policy = make_policy()
    policy.bind(perturbed(policy, scale=0.05))
    loss, metrics = batched_loss(policy, make_batch(groups), "initial policy", clip=1e-7)
    assert float(metrics["log_ratio/clip_fraction"]) == 1.0
    loss.sum().backward()
    assert all(float(p.grad.abs().max()) == 0.0 for p in policy.parameters() if p.grad is not None)


def test_an_untrained_policy_pays_softplus_of_zero(
    make_policy: Callable[..., Policy], groups: list[TrajectoryGroup], make_batch: Callable[..., TransitionBatch]
) -> None:
    loss, metrics = batched_loss(make_policy(), make_batch(groups), "initial policy")
    np.testing.assert_allclose(loss.detach().numpy(), np.log(2), rtol=1e-6)
    assert {name: float(metrics[name]) for name in ("log_ratio/abs_mean", "log_ratio/abs_max", "pair_accuracy")} == {
        "log_ratio/abs_mean": 0.0,
        "log_ratio/abs_max": 0.0,
        "pair_accuracy": 0.5,
    }


def test_transitions_are_copied_out_of_read_only_groups(groups: list[TrajectoryGroup]) -> None:
    for group in groups:
        for array in (group.latents, group.log_probs, group.rewards, *group.conditioning.values()):
            array.setflags(write=False)  # as views into an object store are
    plan = BatchDraws(
        groups=torch.tensor([0, 2]),
        trajectories=torch.tensor([[3, 1], [0, 2]]),
        steps=torch.tensor([[0, 3, 0], [2, 1, 3]]),
        tie_noise=torch.rand(2, 2),
    )
    chosen = [groups[0], groups[2]]
    batch = gather_transitions(plan, chosen)
    for b, group in enumerate(chosen):
        for i, k in enumerate(plan.trajectories[b].tolist()):
            assert float(batch.rewards[b, i]) == group.rewards[k]
            for s, t in enumerate(plan.steps[b].tolist()):
                drawn = int(batch.draws[b, i, s])
                assert int(batch.t[drawn]) == t
                assert np.array_equal(batch.x_t[drawn].numpy(), group.latents[k, t])
                assert np.array_equal(batch.x_next[drawn].numpy(), group.latents[k, t + 1])
                assert float(batch.old_log_probs[b, i, s]) == group.log_probs[k, t]
    before = chosen[0].latents.copy()
    batch.x_t.zero_()
    assert np.array_equal(chosen[0].latents, before)


def test_a_transition_drawn_twice_is_computed_once(
    policy: Policy, groups: list[TrajectoryGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tuples of one group, and a step that both draw twice: 2 x 2 x 3 draws are 5 transitions."""
    plan = BatchDraws(
        groups=torch.tensor([1, 1]),
        trajectories=torch.tensor([[0, 1], [1, 2]]),
        steps=torch.tensor([[3, 3, 0], [3, 3, 3]]),
        tie_noise=torch.rand(2, 2),
    )
    batch = gather_transitions(plan, [groups[1]] * 2)
    assert len(batch.x_t) == 5
    calls: list[int] = []
    unet = policy.network.forward
    monkeypatch.setattr(policy.network, "forward", lambda x, *rest: calls.append(len(x)) or unet(x, *rest))
    loss, _ = batched_loss(policy, batch, "initial policy")
    assert calls == [10, 10]  # both guidance halves, reference and policy
    monkeypatch.undo()
    expected = slow_preference_loss(policy, batch, "initial policy")
    np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("ties", ["random", "marginal"])
@pytest.mark.parametrize("references", [0, 1, 2])
def test_the_loss_is_of_one_device_and_never_waits_for_it(
    groups: list[TrajectoryGroup],
    make_batch: Callable[..., TransitionBatch],
    monkeypatch: pytest.MonkeyPatch,
    references: int,
    ties: Any,
) -> None:
    """With tensors that say they are on a GPU and have no content: asking for any is an error."""
    monkeypatch.setattr(losses, "_sets_by_size", losses._sets_by_size.__wrapped__)  # keeps none of them
    monkeypatch.setattr(losses, "to_device", lambda tensor, device: tensor.to(device))  # what is faked is not pinned
    monkeypatch.setattr(objective, "slopes", lambda loss, log_probs: log_probs)  # autograd asks for a real device
    batch = make_batch(groups)
    with FakeTensorMode():
        on_gpu = {
            field.name: torch.empty(value.shape, dtype=value.dtype, device="cuda")
            for field in fields(batch)
            if isinstance(value := getattr(batch, field.name), torch.Tensor)
        }
        given = {name: torch.empty(value.shape, device="cuda") for name, value in batch.conditioning.items()}
        there = replace(batch, **on_gpu, conditioning=given)
        policy: Any = SimpleNamespace(log_prob=lambda x_t, *_: x_t.float().mean((1, 2, 3)))
        loss, values = preference_loss(policy, there, [there.old_log_probs] * references, c=C, clip=CLIP, ties=ties)
    assert {tensor.device.type for tensor in (loss, *values.values())} == {"cuda"}
