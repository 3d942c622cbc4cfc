"""What can be checked of a configuration before an actor starts or a weight is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from raydense.config import Config, ConfigError
from raydense.core.messages import first_few
from raydense.diffusion.compiler import check_compiler
from raydense.diffusion.flow import SCHEDULER as FLOW_SCHEDULER
from raydense.diffusion.flow import is_flow
from raydense.diffusion.kernel import check_eta
from raydense.diffusion.schedulers import settle_chain
from raydense.families.family import Family
from raydense.families.known import check_classes, check_parts
from raydense.families.text import limit_tokens
from raydense.pipelines.model_folder import ModelFolder
from raydense.pipelines.pipeline_files import (
    CLIP,
    POSITIONS,
    SCHEDULER,
    T5_VOCABULARY,
    VOCABULARY,
    PipelineFiles,
    config_file,
)
from raydense.planning.effects import check_effects, check_kept, idle_in_training, idle_notes
from raydense.planning.scorer_files import check_hub, check_scorer
from raydense.planning.units import PromptSets, read_prompt_sets
from raydense.prompts.prompt_sets import truncation_notes
from raydense.records.sinks import check_telemetry
from raydense.wiring.policies import (
    chain,
    evaluated_chain,
    family_for,
    initial_lora,
    lora_config,
    read_family,
    resolved,
)
from raydense.wiring.roles import CLEAR, LOG_RATIO_NOISE


@dataclass(frozen=True)
class Found:
    """What a run was found to be made of, for all that follows: it is read once.

    config: with what it left to the pipeline, `as_found`.
    """

    config: Config
    prompts: PromptSets
    pipeline: PipelineFiles

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self.pipeline.notes, *self.prompts.notes, *idle_in_training(self.config))


def check_inputs(config: Config) -> Found:
    """Reads prompts and pipeline, and checks them, the scorers' files and where metrics go.

    Raises: ConfigError in one line.
    """
    prompts, pipeline = read_prompt_sets(config), check_models(config)
    check_telemetry(config)
    prompts = replace(prompts, notes=(*prompts.notes, *_cut_off(config, pipeline, prompts)))
    config = as_found(config, pipeline)
    if config.replay.keep_segments:
        from raydense.planning.memory import group_bytes

        check_kept(config, group_bytes(config, family_for(config, pipeline)))
    return Found(config, prompts, pipeline)


def check_models(config: Config, *, fetch: bool = True) -> PipelineFiles:
    """`check_pipeline`, and the files of all judges. Raises: ConfigError."""
    pipeline = check_pipeline(config, fetch=fetch)
    for scorer in config.reward.judges:
        check_scorer(scorer)
        if fetch:
            check_hub(scorer)
    return pipeline


def check_pipeline(config: Config, *, fetch: bool = True) -> PipelineFiles:
    """Reads the pipeline's files, and checks its parts, the chain on its scheduler, and the LoRA on its U-Net.

    Args: fetch: whether to ask the hub for files that are not in its cache; else what needs them is not checked.
    Returns: the files, with notes on what is taken otherwise than they have it.
    Raises: ConfigError.
    """
    from raydense.planning.fitting import check_fit

    if config.policy.compile is True and not os.environ.get("RAY_ADDRESS"):  # else the nodes that compile say so
        try:
            check_compiler()
        except FileNotFoundError as error:
            raise ConfigError(str(error)) from None
    family = read_family(config, fetch=fetch)
    check_classes(family)
    folders = _described_folders(config, family.files)
    check_parts(family)
    check_effects(config, family)
    _check_latents(family)
    pipeline = _check_files(config, family.files, folders)
    check_fit(family)
    config = resolved(config, family)
    notes = (*pipeline.notes, *_check_chain(config, family), *_rounding_note(config), *idle_notes(config))
    _check_lora(config, family)
    return replace(pipeline, notes=notes)


def as_found(config: Config, pipeline: PipelineFiles) -> Config:
    """The configuration with what it left to the pipeline, so that whoever reads it later takes the same."""
    policy = config.policy.model_copy(update={"variant": config.policy.variant or pipeline.variant})
    return resolved(config.model_copy(update={"policy": policy}), family_for(config, pipeline))


def _described_folders(config: Config, pipeline: PipelineFiles) -> dict[str, ModelFolder]:
    """The pipeline's folders, each of which can be made from its small files. Raises: ConfigError."""
    from raydense.pipelines.networks import check_described, class_of

    policy = config.policy
    folders = {part: ModelFolder("policy.model", policy.model, policy.revision, part) for part in pipeline.parts}
    for part in pipeline.tokenizers:
        folders[part].check_files(vocabulary=folders[part].is_local and pipeline.layout.tokenizers[part] == CLIP)
    for part, name in pipeline.networks.items():
        check_described(class_of(name), folders[part])
    return folders


def _check_files(config: Config, pipeline: PipelineFiles, folders: Mapping[str, ModelFolder]) -> PipelineFiles:
    """Looks at the scheduler, and at what weights say of themselves, of those that are on this machine.

    Returns: the pipeline, and notes on weights of a variant that nobody asked for.
    """
    from raydense.pipelines.configurations import check_configuration
    from raydense.pipelines.networks import check_weights, class_of

    policy = config.policy
    if (scheduler := pipeline[SCHEDULER]) is not None:
        cls = class_of(FLOW_SCHEDULER if is_flow(scheduler) else "DDIMScheduler")
        check_configuration(cls, scheduler, f"policy.model={policy.model}: {config_file(SCHEDULER)}")
    networks = pipeline.networks
    found = {part: check_weights(class_of(name), folders[part], policy.variant) for part, name in networks.items()}
    variants = {part: weights.variant for part, weights in found.items() if weights is not None}
    if policy.variant is not None and len(variants) == len(networks) and policy.variant not in variants.values():
        raise ConfigError(
            f"policy.variant={policy.variant}: policy.model={policy.model} has no such weights; leave it null"
        )
    others = sorted({variant for variant in variants.values() if variant not in (None, policy.variant)})
    parts = {other: ", ".join(part for part, variant in variants.items() if variant == other) for other in others}
    notes = [f"policy.model has only {other} weights for {parts[other]}, so these are loaded" for other in others]
    return replace(pipeline, variant=others[0] if len(others) == 1 else None, notes=(*pipeline.notes, *notes))


def _check_latents(family: Family) -> None:
    """Raises: ConfigError if neither the configuration nor the network's file gives them a size."""
    if family.files[family.layout.denoiser] is not None:
        try:
            family.latent_shape  # noqa: B018  (to see whether there is one)
        except ValueError as error:
            raise ConfigError(f"policy.model={family.files.model}: {error}") from None


def _check_chain(config: Config, family: Family) -> tuple[str, ...]:
    """Returns: what is to be said of it. Raises: ConfigError. Args: config: resolved."""
    scheduler, steps = family.files[SCHEDULER], config.steps
    for setting, value, allowed in (
        ("steps.dynamics", steps.dynamics, family.dynamics),
        ("evaluate.dynamics", config.evaluate.dynamics, family.evaluated_dynamics),
    ):
        if value is not None and value not in allowed:
            raise ConfigError(
                f"{setting}={value} is not for a {family.files.kind}; allowed: {', '.join(allowed)}; or leave it null"
            )
        try:
            check_eta(value or "", steps.eta)
        except ValueError as error:
            raise ConfigError(f"{setting}={value}: {error}") from None
    if scheduler is None:
        return ()
    schedule = chain(config, family)
    evaluated_chain(config, family)
    note = "" if is_flow(scheduler) else settle_chain(scheduler, steps.count, steps.spacing).note
    if silent := [step for step in steps.drawn if not schedule.noisy[step]]:
        raise ConfigError(
            f"the loss would draw step {', '.join(map(str, silent))} of {steps.count}, which has no density under "
            f"steps.dynamics={steps.dynamics}; set steps.exclude_last={steps.count - min(silent)} or more"
        )
    return (note,) if note else ()


def _rounding_note(config: Config) -> tuple[str, ...]:
    """A clip that is smaller than what rounding does to a log-ratio."""
    learner, clip = config.learner, config.train.clip
    noise = LOG_RATIO_NOISE.get(learner.dtype, 0.0)
    if clip == "auto" or clip >= CLEAR * noise or not config.train.draws_steps:
        return ()
    better = "float16 has less, float32 none" if learner.dtype == "bfloat16" else "float32 has none"
    return (
        f"train.clip={clip:g} is below three times the error that learner.dtype={learner.dtype} has in a log-ratio, "
        f"about {noise:g}: it cuts noise too; {better}, raydense doctor measures it",
    )


def _check_lora(config: Config, family: Family) -> None:
    from raydense.planning.footprint import lora_layers, lora_shapes

    if family.files[family.layout.denoiser] is None:
        return
    layers, what = lora_layers(family), family.layout.called
    for target in config.policy.lora_targets or ():
        meant = [name for name in layers if name == target or name.endswith(f".{target}")]
        if not meant:
            raise ConfigError(f"policy.lora_targets: {target!r} matches nothing in the {what}; remove or correct it")
        if others := [name for name in meant if not layers[name]]:
            raise ConfigError(
                f"policy.lora_targets: {target!r} matches {first_few(others, 1)}, which takes no LoRA; name linear "
                "layers and convolutions"
            )
    if config.policy.init_lora is not None:
        adaptable = [name for name, is_one in layers.items() if is_one]
        initial_lora(config, family.files, lora_shapes(family, lora_config(config)), adaptable)


def _cut_off(config: Config, pipeline: PipelineFiles, sets: PromptSets) -> list[str]:
    """Notes on prompts that are too long, where the tokenizer is at hand. Raises: ConfigError if it is another's."""
    tokenizers = [_tokenizer(config, pipeline, part) for part in pipeline.tokenizers]
    if (tokenizer := tokenizers[0]) is None:
        return []  # the samplers need it too, and say so
    limit_tokens(tokenizer, (pipeline["text_encoder"] or {}).get("max_position_embeddings", POSITIONS))
    if any(map(pipeline.is_t5, pipeline.networks)):
        return []  # which reads what the CLIPs do not
    return truncation_notes((*sets.train, *sets.unseen), tokenizer)


def _tokenizer(config: Config, pipeline: PipelineFiles, part: str) -> Any:
    """None where it is not at hand. Raises: ConfigError if it is damaged, or has more tokens than its encoder."""
    from raydense.pipelines.networks import class_of, load_part

    folder = ModelFolder("policy.model", config.policy.model, config.policy.revision, part)
    is_clip = pipeline.layout.tokenizers[part] == CLIP
    cls = class_of("CLIPTokenizer" if is_clip else "T5TokenizerFast")
    try:
        tokenizer = load_part(cls.from_pretrained, folder, vocabulary=is_clip)
    except ConfigError:
        if folder.is_local:
            raise
        return None
    encoder = part.replace("tokenizer", "text_encoder")
    known = (pipeline[encoder] or {}).get("vocab_size", VOCABULARY if is_clip else T5_VOCABULARY)
    if len(tokenizer) > known:
        raise ConfigError(
            f"policy.model={config.policy.model}: its {part} has {len(tokenizer)} tokens, but its {encoder}'s "
            f"vocab_size={known}; give a pipeline whose tokenizer and text encoder belong together"
        )
    return tokenizer


def needs_hub(prompts: str) -> bool:
    """Whether a prompt location is a set that only the hub has."""
    return prompts.startswith("set://hpsv2") and "?dir=" not in prompts
