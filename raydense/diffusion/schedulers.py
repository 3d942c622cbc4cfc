"""What a pipeline's scheduler file says of noise and timesteps, in the terms of diffusers' DDIMScheduler.

Many classes step through one and the same noise schedule, each in its own way: their betas are taken, and the steps are
DDIM's. Which timesteps a chain visits is the pipeline's own choice where every step of it has a density.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler
from torch import Tensor

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
SPACINGS = ("leading", "trailing", "linspace")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")  # DDIMScheduler's
WITH_BETAS = (
    "DDIMScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler", "PNDMScheduler",
    "LMSDiscreteScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "DPMSolverSDEScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler",
    "SASolverScheduler", "LCMScheduler", "TCDScheduler",
)  # fmt: skip
TAKEN = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr",
    "prediction_type", "timestep_spacing", "steps_offset", "set_alpha_to_one",
)  # fmt: skip
NO_CLIPPING = {"clip_sample": False, "thresholding": False}  # METHOD §3: latents are no pixels
NOT_TAKEN = (  # settings that give other classes timesteps which DDIM has not
    "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "original_inference_steps",
)  # fmt: skip


@dataclass(frozen=True)
class Chain:
    """Where T steps lie on a noise schedule; index 0 is the first, noisiest step."""

    arguments: Mapping[str, Any]  # of the DDIMScheduler that takes the same steps
    timesteps: Tensor  # int64 [T]
    alpha: Tensor  # float64 [T], ᾱ_t
    alpha_prev: Tensor  # float64 [T], ᾱ of the next, less noisy state
    note: str = ""  # what of the pipeline's own choice was replaced

    @property
    def has_densities(self) -> bool:
        """Whether each step has σ > 0, and a mean: epsilon says nothing of the picture where ᾱ is 0."""
        noisy = (self.alpha < self.alpha_prev) & (self.alpha_prev < 1)
        return bool((noisy & ((self.alpha > 0) | (self.arguments["prediction_type"] != "epsilon"))).all())


def settle_chain(
    scheduler_config: Mapping[str, Any], num_steps: int, spacing: str | None = None, counted: str = "steps.count"
) -> Chain:
    """The chain of `num_steps` on a pipeline's noise schedule, whichever scheduler it was written for.

    Args:
        spacing: leading or trailing: so spaced, and ending at the noise of timestep 0 as Stable Diffusion 1.5 does.
            None: the pipeline's own, or leading with a note where that leaves a step without a density.
    Raises: ValueError if the scheduler describes no such noise schedule, if T does not fit it, or if it leaves log π
        undefined; in one line that says what to set.
    """
    own, not_taken = _ddim_arguments(scheduler_config)
    if spacing is not None:
        if not (chain := _chain({**own, **with_noise(spacing, own["steps_offset"])}, num_steps, counted)).has_densities:
            raise ValueError(
                f"{counted}={num_steps} leaves log π undefined under steps.spacing={spacing} with prediction_type="
                f"{own['prediction_type']}; lower {counted} or choose another spacing"
            )
        return chain
    if not (chain := _chain(own, num_steps, counted)).has_densities:
        not_taken.insert(0, f"timestep_spacing={own['timestep_spacing']}")
        chain = _chain({**own, "timestep_spacing": "leading"}, num_steps, counted)
    if not chain.has_densities:
        told = ", ".join(f"{key}={own[key]}" for key in ("timestep_spacing", "steps_offset", "set_alpha_to_one"))
        better = "trailing" if own["timestep_spacing"] == "trailing" else "leading"
        raise ValueError(
            f"the scheduler's last σ is 0 at {counted}={num_steps} ({told}), so log π is undefined; set "
            f"steps.spacing={better}, which ends at the noise of timestep 0"
        )
    if not not_taken:
        return chain
    visited = f"{chain.arguments['timestep_spacing']}, {chain.timesteps[0]} … {chain.timesteps[-1]}"
    note = (
        f"the scheduler's {' and '.join(not_taken)} cannot be had from DDIM with noise at every step; the chain's "
        f"timesteps are {visited} (steps.spacing chooses)"
    )
    return replace(chain, note=note)


def ddim_settings(scheduler_config: Mapping[str, Any], num_steps: int, spacing: str | None = None) -> dict[str, Any]:
    """Of the DDIMScheduler that takes the steps of `settle_chain`: what differs from its class's defaults."""
    arguments, defaults = settle_chain(scheduler_config, num_steps, spacing).arguments, DDIMScheduler().config
    return {key: value for key, value in arguments.items() if defaults[key] != value}


def with_noise(spacing: str | None, offset: int = 1) -> dict[str, Any]:
    """DDIMScheduler's arguments for timesteps so spaced that σ > 0 to the end; none for the pipeline's own."""
    if spacing is None:
        return {}
    return {"timestep_spacing": spacing, "steps_offset": max(1, offset), "set_alpha_to_one": False}


def noise_table(scheduler_config: Mapping[str, Any]) -> tuple[Tensor, str]:
    """ᾱ of every timestep that a model was trained on, float64 [N], and its prediction type. Raises: ValueError."""
    arguments, _ = _ddim_arguments(scheduler_config)
    scheduler: Any = DDIMScheduler(**arguments)
    return scheduler.alphas_cumprod.double(), arguments["prediction_type"]


def _ddim_arguments(scheduler_config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What DDIMScheduler takes over, and which of the scheduler's choices of timesteps it cannot. Raises: ValueError.

    What the file leaves out is as the scheduler's own class has it, and as DDIMScheduler has it where that has none.
    """
    name = str(scheduler_config.get("_class_name", "DDIMScheduler"))
    values = {**_defaults("DDIMScheduler"), **_defaults(name), **scheduler_config}
    if other := _other_than_betas(name, values):
        raise ValueError(
            f"the scheduler {name} is {other}, but a chain needs a noise schedule of betas; give a pipeline with one "
            "(as DDIM, DDPM, PNDM, Euler, DPM-Solver, UniPC and LCM have)"
        )
    if values["prediction_type"] not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type={values['prediction_type']} is not one of {PREDICTION_TYPES}")
    if values["trained_betas"] is None and values["beta_schedule"] not in BETA_SCHEDULES:
        raise ValueError(f"beta_schedule={values['beta_schedule']} is not one of {BETA_SCHEDULES}")
    if values["timestep_spacing"] not in SPACINGS:
        raise ValueError(f"timestep_spacing={values['timestep_spacing']} is not one of {SPACINGS}")
    own = {key: values[key] for key in TAKEN}
    return own | NO_CLIPPING, [f"{key}={values[key]}" for key in NOT_TAKEN if values.get(key)]


def _defaults(name: str) -> dict[str, Any]:
    """Of a class of diffusers that has betas; none of another, nor of one that needs a package which is not here."""
    parameters = inspect.signature(getattr(diffusers, name)).parameters if name in WITH_BETAS else {}
    return {key: p.default for key, p in parameters.items() if p.default is not p.empty}


def _other_than_betas(name: str, values: Mapping[str, Any]) -> str:
    """What the scheduler is in the place of one with a noise schedule of betas; empty if it is one."""
    if "Flow" in name or values.get("use_flow_sigmas") or values["prediction_type"] == "flow_prediction":
        return "of flow matching"
    if name.startswith("EDM") or values.get("timestep_type") == "continuous":
        return "of EDM, with continuous noise levels"
    return "" if name in WITH_BETAS else "of no known kind"


def _chain(arguments: Mapping[str, Any], num_steps: int, counted: str) -> Chain:
    """The steps that DDIMScheduler takes. Raises: ValueError if there are not so many."""
    scheduler: Any = DDIMScheduler(**arguments)
    train_steps, table = arguments["num_train_timesteps"], scheduler.alphas_cumprod.double()
    if len(table) != train_steps:
        raise ValueError(f"the scheduler has {len(table)} trained_betas for num_train_timesteps={train_steps}")
    if 1 <= num_steps <= train_steps:
        scheduler.set_timesteps(num_steps)
    timesteps = scheduler.timesteps.to(torch.int64)
    if len(timesteps) != num_steps or int(timesteps.max()) >= train_steps:  # trailing rounds to one too many at times
        raise ValueError(f"{counted}={num_steps} does not fit the scheduler's {train_steps} timesteps; lower it")
    previous = timesteps - train_steps // num_steps  # as DDIMScheduler.step has it, whatever the spacing
    final = scheduler.final_alpha_cumprod.double()
    alpha_prev = torch.where(previous >= 0, table[previous.clamp(min=0)], final)
    return Chain(arguments, timesteps, table[timesteps], alpha_prev)
