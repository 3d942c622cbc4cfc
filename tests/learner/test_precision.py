"""16-bit networks in sampler and learner: what stays float32, and how the noise of re-scoring compares with δ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from learner.sgd_learner import SGDLearner
from raydense.core.types import PolicyWeights, TrajectoryGroup
from raydense.diffusion.policy import Policy

Make = Callable[..., Any]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def trained(make_policy: Callable[..., Policy], perturbed: Callable[..., PolicyWeights]) -> PolicyWeights:
    return perturbed(make_policy(), scale=0.1)


@pytest.fixture(scope="module")
def sampled(
    make_policy: Callable[..., Policy], make_groups: Make, trained: PolicyWeights
) -> dict[torch.dtype, list[TrajectoryGroup]]:
    """Groups of one policy, sampled in each dtype."""
    groups = {}
    for dtype in (torch.float32, torch.bfloat16):
        policy = make_policy(dtype=dtype)
        policy.bind(trained)
        groups[dtype] = make_groups(policy)
    return groups


def first_step(
    make_policy: Callable[..., Policy],
    make_learner: Make,
    trained: PolicyWeights,
    groups: list[TrajectoryGroup],
    dtype: torch.dtype,
) -> tuple[SGDLearner[TrajectoryGroup], Policy, dict[str, float]]:
    policy = make_policy(dtype=dtype)
    policy.bind(trained)
    learner = make_learner(policy, lr=1e-6)
    learner.begin_stage(0, groups)
    (row,) = learner.train(1)
    return learner, policy, dict(row.values)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lora_gradient_and_adams_state_are_float32(
    make_policy: Callable[..., Policy], make_learner: Make, trained: PolicyWeights, sampled: Any, dtype: Any
) -> None:
    learner, policy, _ = first_step(make_policy, make_learner, trained, sampled[torch.bfloat16], dtype)
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in policy.parameters() if p.grad is not None} == {torch.float32}
    moments = [v for entry in learner.state_dict()["optimizer"]["state"].values() for v in entry.values()]
    assert len(moments) == 3 * 64
    assert {m.dtype for m in moments} == {torch.float32}


def test_float16_rounds_a_gradient_less_than_bfloat16_once_the_loss_is_scaled(
    make_policy: Callable[..., Policy], make_learner: Make, trained: PolicyWeights, sampled: Any
) -> None:
    """As small as at the latents of Stable Diffusion: C is 2^14 times lower than it might be."""

    def gradient(dtype: torch.dtype, loss_scale: float = 1.0) -> torch.Tensor:
        policy = make_policy(dtype=dtype)
        policy.bind(trained)
        learner = make_learner(policy, lr=0.0, max_grad_norm=1e9, c=10 / 2**14, clip=10.0, loss_scale=loss_scale)
        learner.begin_stage(0, sampled[torch.float32])
        (row,) = learner.train(1)
        flat = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]).double()
        assert row.values["grad_norm"] == pytest.approx(float(flat.norm()))
        return flat

    exact = gradient(torch.float32)
    assert (gradient(torch.float32, 2.0**14) - exact).norm() < 1e-6 * exact.norm()
    error = {
        name: float((gradient(*how) - exact).norm() / exact.norm())
        for name, how in {
            "bfloat16": (torch.bfloat16,),
            "float16": (torch.float16, 2.0**14),
            "unscaled": (torch.float16,),
        }.items()
    }
    assert error["float16"] < error["bfloat16"] / 4
    assert error["float16"] < 0.05
    assert error["unscaled"] > 2 * error["float16"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_log_probs_are_float32(make_policy: Callable[..., Policy], dtype: Any, sampled: Any) -> None:
    policy, group = make_policy(dtype=dtype), sampled[torch.float32][0]
    x = torch.from_numpy(group.latents[:, 0].copy()), torch.from_numpy(group.latents[:, 1].copy())
    embeds = {"prompt_embeds": torch.from_numpy(group.conditioning["prompt_embeds"].copy()).expand(3, -1, -1)}
    assert policy.log_prob(*x, torch.zeros(3, dtype=torch.int64), embeds).dtype == torch.float32


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_untrained_lora_has_log_ratio_exactly_zero_in_any_precision(
    make_policy: Callable[..., Policy], make_learner: Make, sampled: Any, dtype: Any
) -> None:
    base = make_policy().weights()
    _, _, row = first_step(make_policy, make_learner, base, sampled[torch.bfloat16], dtype)
    assert (row["log_ratio/abs_mean"], row["log_ratio/abs_max"]) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("sampler", "dtype", "low", "high"),
    [
        (torch.float32, torch.float32, 0.0, 1e-6),  # the same arithmetic
        (torch.float32, torch.bfloat16, 1e-6, 5e-2),
        (torch.bfloat16, torch.float32, 1e-6, 5e-2),
        (torch.bfloat16, torch.bfloat16, 0.0, 1e-5),  # the presets': far under their δ
    ],
    ids=str,
)
def test_the_noise_of_rescoring_is_reported_and_bounded(
    make_policy: Callable[..., Policy],
    make_learner: Make,
    trained: PolicyWeights,
    sampled: Any,
    sampler: torch.dtype,
    dtype: Any,
    low: float,
    high: float,
) -> None:
    """At a stage's first step θ is π_old, so `log_ratio/old_abs_mean` is noise alone: compare it with δ (METHOD §3)."""
    _, _, row = first_step(make_policy, make_learner, trained, sampled[sampler], dtype)
    print(f"sampler {sampler}, learner {dtype}: re-scoring noise {row['log_ratio/old_abs_mean']:.2e}")
    assert low <= row["log_ratio/old_abs_mean"] <= high
    assert row["log_ratio/abs_mean"] > 1e-4  # the LoRA does something
