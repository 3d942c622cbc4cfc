"""Noise levels against diffusers' own schedulers, which add noise as in pre-training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from raydense.diffusion.noising import make_noise_levels

SD15 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
LEVELS = torch.tensor([0, 1, 500, 998, 999])


def draws(seed: int) -> torch.Tensor:
    return torch.randn(len(LEVELS), 4, 3, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler"])
def test_a_diffusion_models_levels_are_its_timesteps(scheduler: str, prediction: str) -> None:
    config = {**SD15, "_class_name": scheduler, "prediction_type": prediction}
    levels, trainer = (
        make_noise_levels(config),
        DDPMScheduler(**SD15 | {"prediction_type": prediction, "steps_offset": 0}),
    )
    clean, noise = draws(0), draws(1)
    torch.testing.assert_close(
        levels.noised(clean.half(), noise, LEVELS), trainer.add_noise(clean.half().float(), noise, LEVELS)
    )
    expected = {"epsilon": noise, "v_prediction": trainer.get_velocity(clean, noise, LEVELS), "sample": clean}
    torch.testing.assert_close(levels.target(clean, noise, LEVELS), expected[prediction])
    assert torch.equal(levels.timesteps, torch.arange(1000))
    assert set(levels.weights.tolist()) == {1.0}


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flows_levels_are_its_schedulers_with_its_own_shift(shift: float) -> None:
    levels = make_noise_levels({**FLOW, "shift": shift})
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=shift)
    clean, noise = draws(0), draws(1)
    times = scheduler.timesteps[LEVELS]
    torch.testing.assert_close(levels.noised(clean, noise, LEVELS), scheduler.scale_noise(clean, times, noise))
    torch.testing.assert_close(levels.target(clean, noise, LEVELS), noise - clean)
    torch.testing.assert_close(levels.timesteps, scheduler.timesteps)


def test_a_flows_levels_are_drawn_logit_normally() -> None:
    """Against the trainers' way: sigmoid of a normal, in thousandths."""
    levels = make_noise_levels(FLOW)
    assert float(levels.weights.sum()) == pytest.approx(1.0)
    u = torch.randn(200_000, generator=torch.Generator().manual_seed(0)).sigmoid()
    seen = torch.bincount((u * 1000).long(), minlength=1000).view(10, 100).sum(1) / len(u)
    torch.testing.assert_close(levels.weights.view(10, 100).sum(1).float(), seen.float(), atol=3e-3, rtol=0)


def test_what_is_no_noise_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="is of EDM, with continuous noise levels"):
        make_noise_levels({"_class_name": "EDMEulerScheduler"})
