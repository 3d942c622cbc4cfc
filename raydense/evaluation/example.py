"""A few lines that draw with diffusers what a run's LoRA gives, whatever the kind of model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raydense.config import Config, ConfigError
from raydense.diffusion.lora import FILE_NAME
from raydense.files.locations import resolve
from raydense.pipelines.pipeline_files import DEFAULT, PipelineFiles, read_pipeline, tokenizer_of, tokens_of
from raydense.sections.run import StepsConfig

EXAMPLE = """\
import torch
from diffusers import {classes}
pipeline = {kind}.from_pretrained({model!r}{weights}, torch_dtype=torch.float32{absent})
pipeline.load_lora_weights(".", weight_name="{file}")
{tokenizers}{scheduler}pipeline({prompt!r}, {arguments}).images[0].save("example.png")
"""


def example_code(config: Config, prompt: str, scheduler: Mapping[str, Any] | None = None) -> str:
    """A few lines that draw a picture with diffusers: of the size that the run had, by its chain or, for flows, as
    pictures were drawn to judge.

    Args: scheduler: as of `RunDirectory.read_scheduler`.
    """
    policy, by_ddim = config.policy, config.steps.dynamics in (None, "ddim")
    try:
        pipeline = read_pipeline(policy.model, policy.revision, fetch=False, optional=policy.t5 is not None)
    except ConfigError:  # it is elsewhere by now
        pipeline = PipelineFiles(policy.model)
    kind = "DiffusionPipeline" if pipeline.index is None and not by_ddim else pipeline.kind
    weights = {"revision": policy.revision, "variant": policy.variant}
    # diffusers wants to be told of the parts that are not there
    absent = [part for part in pipeline.layout.optional if not pipeline.has(part)]
    unused = ["safety_checker"] if pipeline.kind == DEFAULT else absent
    return EXAMPLE.format(
        classes=f"DDIMScheduler, {kind}" if by_ddim else kind,
        kind=kind,
        model=resolve(policy.model),
        weights="".join(f", {name}={value!r}" for name, value in weights.items() if value is not None),
        absent="".join(f", {name}=None" for name in unused),
        file=FILE_NAME,
        prompt=prompt,
        tokenizers="".join(_tokenizer_code(pipeline, encoder) for encoder in pipeline.layout.text_encoders),
        scheduler=_scheduler_code(config.steps, pipeline, scheduler) if by_ddim else "",
        arguments=", ".join(_arguments(config, by_ddim)),
    )


def _arguments(config: Config, by_ddim: bool) -> list[str]:
    """Of the pipeline's call."""
    judged, size = config.evaluate, config.sampler.latent_size
    steps = config.steps.count if by_ddim else judged.steps or config.steps.count
    given = [f"num_inference_steps={steps}", f"guidance_scale={config.sampler.guidance_scale:g}"]
    if by_ddim:
        given.append(f"eta={config.steps.eta:g}")
    if config.policy.t5_tokens is not None:
        given.append(f"max_sequence_length={config.policy.t5_tokens}")
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        given += [f"{name}={edge} * pipeline.vae_scale_factor" for name, edge in (("height", height), ("width", width))]
    return given


def _tokenizer_code(pipeline: PipelineFiles, encoder: str) -> str:
    """diffusers pads prompts to the tokenizer's length, of which some files say nothing, or too much."""
    folder = tokenizer_of(encoder)
    if pipeline[encoder] is None or pipeline.is_t5(encoder):
        return ""
    length, stated = tokens_of(pipeline, encoder), pipeline[folder] or {}
    return "" if stated.get("model_max_length") == length else f"pipeline.{folder}.model_max_length = {length}\n"


def _scheduler_code(steps: StepsConfig, pipeline: PipelineFiles, scheduler: Mapping[str, Any] | None) -> str:
    made = _of_earlier_code(steps, pipeline) if scheduler is None else f"({_as_code(scheduler)})"
    return f"pipeline.scheduler = DDIMScheduler{made}\n"


def _of_earlier_code(steps: StepsConfig, pipeline: PipelineFiles) -> str:
    """The scheduler of a run that does not say it; its class's conversion alone would clip, among others."""
    from raydense.diffusion.schedulers import NO_CLIPPING, ddim_settings, with_noise  # with diffusers

    if pipeline["scheduler"] is None:  # what needs no look at it
        return f".from_config(pipeline.scheduler.config, {_as_code({**NO_CLIPPING, **with_noise(steps.spacing)})})"
    return f"({_as_code(ddim_settings(pipeline['scheduler'], steps.count, steps.spacing))})"


def _as_code(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())
