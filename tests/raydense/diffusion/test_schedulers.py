"""A pipeline's scheduler, whichever it is, as a chain whose every step has a density: what is taken, and what not."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from raydense.diffusion.kernel import make_schedule, transition
from raydense.diffusion.schedulers import WITH_BETAS, settle_chain

BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SD15 = {**BETAS, "set_alpha_to_one": False, "steps_offset": 1}
LEADING, TRAILING = [901, 801, 1], [999, 899, 99]  # first, second and last timestep of ten


def visited(config: dict[str, Any], spacing: str | None = None, num_steps: int = 10) -> list[int]:
    timesteps = settle_chain(config, num_steps, spacing).timesteps.tolist()
    return [timesteps[0], timesteps[1], timesteps[-1]]


@pytest.mark.parametrize(
    ("changes", "spacing", "expected", "noted"),
    [
        ({}, None, LEADING, None),
        ({"timestep_spacing": "leading"}, None, LEADING, None),
        ({"timestep_spacing": "trailing"}, None, TRAILING, None),
        ({"timestep_spacing": "trailing"}, "leading", LEADING, None),
        ({"timestep_spacing": "linspace"}, None, LEADING, "timestep_spacing=linspace"),
        ({"timestep_spacing": "linspace"}, "trailing", TRAILING, None),
        ({"_class_name": "PNDMScheduler", "skip_prk_steps": True}, None, LEADING, None),
        ({"_class_name": "EulerDiscreteScheduler"}, None, LEADING, "timestep_spacing=linspace"),  # the class's own
        ({"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}, None, TRAILING, None),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "timestep_spacing": "leading", "use_karras_sigmas": True},
            None,
            LEADING,
            "use_karras_sigmas=True",
        ),
        ({"_class_name": "LCMScheduler"}, None, LEADING, "original_inference_steps=50"),
        ({"_class_name": "LCMScheduler"}, "trailing", TRAILING, None),
        ({"set_alpha_to_one": True, "steps_offset": 0}, "leading", LEADING, None),
        ({"set_alpha_to_one": True, "steps_offset": 0}, "trailing", TRAILING, None),
        ({"steps_offset": 4}, "leading", [904, 804, 4], None),
        (  # zero terminal signal: v-prediction has a mean there, and epsilon has none
            {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
            None,
            TRAILING,
            None,
        ),
        (
            {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
            None,
            LEADING,
            "timestep_spacing=trailing",
        ),
    ],
)
def test_the_pipelines_own_timesteps_are_kept_where_every_step_has_a_density(
    changes: dict[str, Any], spacing: str | None, expected: list[int], noted: str | None
) -> None:
    config = {**SD15, **changes}
    chain = settle_chain(config, 10, spacing)
    assert visited(config, spacing) == expected
    assert bool((chain.alpha < chain.alpha_prev).all() and (chain.alpha_prev < 1).all())
    if noted is None:
        assert chain.note == ""
    else:
        assert noted in chain.note
        assert f"leading, {expected[0]} … {expected[-1]} (steps.spacing chooses)" in chain.note
        assert "\n" not in chain.note


def test_fifty_steps_in_each_spacing() -> None:
    assert settle_chain(SD15, 50).timesteps.tolist() == list(range(981, 0, -20))
    assert settle_chain(SD15, 50, "trailing").timesteps.tolist() == list(range(999, 0, -20))


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("name", WITH_BETAS)
def test_every_scheduler_of_betas_gives_the_same_chain(name: str, spacing: str) -> None:
    ours = settle_chain({**BETAS, "_class_name": name}, 10, spacing)
    expected = settle_chain({**SD15, "timestep_spacing": spacing}, 10)
    for field in ("timesteps", "alpha", "alpha_prev"):
        assert torch.equal(getattr(ours, field), getattr(expected, field))


@pytest.mark.parametrize("name", ["LCMScheduler", "TCDScheduler", "HeunDiscreteScheduler", "PNDMScheduler"])
def test_what_a_file_leaves_out_is_as_its_class_has_it(name: str) -> None:
    theirs: Any = getattr(diffusers, name)()
    table = settle_chain({"_class_name": name}, 10, "leading")
    assert table.alpha.tolist() == theirs.alphas_cumprod.double()[table.timesteps].tolist()


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "LCMScheduler", "DDPMScheduler"])
def test_the_arguments_are_of_the_scheduler_that_takes_the_same_steps(name: str, spacing: str) -> None:
    config = {**BETAS, "_class_name": name}
    scheduler: Any = DDIMScheduler(**settle_chain(config, 7, spacing).arguments)
    scheduler.set_timesteps(7)
    schedule = make_schedule(config, 7, 1.0, spacing)
    x, output = 5 * torch.randn((2, 7, 4, 3, 3), generator=torch.Generator().manual_seed(0))  # beyond any clipping
    mean, _, _ = transition(schedule, x, output, torch.arange(7))
    for t, timestep in enumerate(scheduler.timesteps):
        step = scheduler.step(output[t], timestep, x[t], eta=1.0, variance_noise=torch.zeros(1))
        torch.testing.assert_close(mean[t], step.prev_sample, rtol=2e-5, atol=2e-4)


@pytest.mark.parametrize(
    ("changes", "num_steps", "spacing", "said"),
    [
        # σ = 0 at the last step: the setting that solves it is named
        ({"steps_offset": 0}, 50, None, r"set_alpha_to_one=False\), .* set steps.spacing=leading"),
        ({"set_alpha_to_one": True}, 50, None, r"set_alpha_to_one=True\), .* set steps.spacing=leading"),
        ({"set_alpha_to_one": True, "timestep_spacing": "trailing"}, 50, None, "set steps.spacing=trailing"),
        ({"_class_name": "EulerDiscreteScheduler", "steps_offset": 0}, 50, None, "set steps.spacing=leading"),
        # T
        ({}, 1000, None, "steps.count=1000 does not fit the scheduler's 1000 timesteps; lower it"),
        ({"steps_offset": 5}, 500, None, "steps.count=500 does not fit"),
        ({}, 0, None, "steps.count=0 does not fit"),
        ({}, 61, "trailing", "steps.count=61 does not fit"),  # diffusers rounds to 62 timesteps, of which one is -1
        ({}, 700, "trailing", "steps.count=700 leaves log π undefined under steps.spacing=trailing"),
        ({"rescale_betas_zero_snr": True}, 10, "trailing", "with prediction_type=epsilon; .* choose another spacing"),
        # what is no noise schedule, or an unknown one
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, 50, None, "FlowMatchEulerDiscreteScheduler is of flow ma"),
        ({"_class_name": "FlowMatchHeunDiscreteScheduler"}, 50, "leading", "is of flow matching"),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, 50, None, "is of flow matching"),
        ({"prediction_type": "flow_prediction"}, 50, None, "is of flow matching"),
        ({"_class_name": "EDMEulerScheduler"}, 50, None, "EDMEulerScheduler is of EDM"),
        ({"_class_name": "EDMDPMSolverMultistepScheduler"}, 50, None, "is of EDM"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, 50, None, "is of EDM"),
        ({"_class_name": "CMStochasticIterativeScheduler"}, 50, None, "is of no known kind"),
        ({"_class_name": "utils"}, 50, None, "utils is of no known kind"),
        ({"_class_name": None}, 50, None, "None is of no known kind"),
        ({"prediction_type": "noise"}, 50, None, "prediction_type=noise is not one of"),
        ({"beta_schedule": "sigmoid"}, 50, None, "beta_schedule=sigmoid is not one of"),
        ({"timestep_spacing": "middle"}, 50, None, "timestep_spacing=middle is not one of"),
        ({"trained_betas": [0.1, 0.2]}, 2, None, "has 2 trained_betas for num_train_timesteps=1000"),
    ],
)
def test_a_chain_without_densities_is_refused(
    changes: dict[str, Any], num_steps: int, spacing: str | None, said: str
) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        settle_chain({**SD15, **changes}, num_steps, spacing)
    assert "\n" not in str(caught.value)


def test_betas_that_were_trained_are_taken_as_they_are() -> None:
    betas = np.linspace(1e-4, 2e-2, 100).tolist()
    chain = settle_chain({**SD15, "num_train_timesteps": 100, "trained_betas": betas, "beta_schedule": "none"}, 10)
    expected = np.cumprod(1 - np.array(betas))[chain.timesteps.numpy()]
    np.testing.assert_allclose(chain.alpha.numpy(), expected, rtol=1e-5)
