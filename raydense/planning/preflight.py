"""What can be checked of a configuration before an actor starts or a weight is loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from raydense.config import Config, ConfigError
from raydense.core.messages import first_few
from raydense.diffusion.compiler import check_compiler
from raydense.diffusion.stable_diffusion import (
    POSITIONS,
    VOCABULARY,
    check_parts,
    latent_height_and_width,
    limit_tokens,
)
from raydense.pipelines.model_folder import ModelFolder
from raydense.pipelines.pipeline_files import (
    FILES,
    FOLDERS,
    PipelineFiles,
    fetch_file,
    local_directory,
    read_pipeline,
)
from raydense.planning.units import PromptSets, read_prompt_sets
from raydense.prompts.prompt_sets import truncation_notes
from raydense.records.sinks import check_telemetry
from raydense.sections.rewards import SingleScorerConfig

LOG_RATIO_NOISE = {"bfloat16": 1e-3, "float16": 5e-5}  # root mean square over steps; see bench/README.md


@dataclass(frozen=True)
class Inputs:
    """What a run was found to be made of, for all that follows: it is read once."""

    prompts: PromptSets
    pipeline: PipelineFiles

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self.pipeline.notes, *self.prompts.notes)


def check_inputs(config: Config) -> Inputs:
    """Reads prompts and pipeline, and checks them, the scorers' files and where metrics go.

    Raises: ConfigError in one line.
    """
    prompts, pipeline = read_prompt_sets(config), check_models(config)
    check_telemetry(config)
    return Inputs(replace(prompts, notes=(*prompts.notes, *_cut_off(config, pipeline, prompts))), pipeline)


def check_models(config: Config, *, fetch: bool = True) -> PipelineFiles:
    """`check_pipeline`, and the files of all judges. Raises: ConfigError."""
    pipeline = check_pipeline(config, fetch=fetch)
    for scorer in config.reward.judges:
        check_scorer(scorer)
        if fetch:
            _check_hub(scorer)
    return pipeline


def check_pipeline(config: Config, *, fetch: bool = True) -> PipelineFiles:
    """Reads the pipeline's files, and checks its parts, the chain on its scheduler, and the LoRA on its U-Net.

    Args: fetch: whether to ask the hub for files that are not in its cache; else what needs them is not checked.
    Returns: the files, with notes on what is taken otherwise than they have it.
    Raises: ConfigError.
    """
    if config.policy.compile is True and not os.environ.get("RAY_ADDRESS"):  # else the nodes that compile say so
        try:
            check_compiler()
        except FileNotFoundError as error:
            raise ConfigError(str(error)) from None
    pipeline = read_pipeline(config.policy.model, config.policy.revision, fetch=fetch)
    check_parts(pipeline)
    _check_latents(config, pipeline)
    pipeline = _check_files(config, pipeline)
    notes = (*pipeline.notes, *_check_chain(config, pipeline), *_rounding_note(config))
    _check_lora(config, pipeline)
    return replace(pipeline, notes=notes)


def with_variant(config: Config, pipeline: PipelineFiles) -> Config:
    """The configuration with the variant that was found, so that whoever reads it later takes the same weights."""
    policy = config.policy.model_copy(update={"variant": config.policy.variant or pipeline.variant})
    return config.model_copy(update={"policy": policy})


def _check_files(config: Config, pipeline: PipelineFiles) -> PipelineFiles:
    """Looks at every file of the pipeline that is on this machine; of weights at their headers alone.

    Returns: the pipeline, and notes on weights of a variant that nobody asked for.
    """
    from diffusers import DDIMScheduler

    from raydense.pipelines.configurations import check_configuration
    from raydense.pipelines.networks import NETWORKS, check_network

    policy = config.policy
    folders = {part: ModelFolder("policy.model", policy.model, policy.revision, part) for part in FOLDERS}
    folders["tokenizer"].check_files(vocabulary=folders["tokenizer"].is_local)
    if pipeline.scheduler is not None:
        check_configuration(DDIMScheduler, pipeline.scheduler, f"policy.model={policy.model}: {FILES['scheduler']}")
    found = {part: check_network(cls, folders[part], policy.variant) for part, cls in NETWORKS.items()}
    variants = {part: weights.variant for part, weights in found.items() if weights is not None}
    if policy.variant is not None and len(variants) == len(NETWORKS) and policy.variant not in variants.values():
        raise ConfigError(
            f"policy.variant={policy.variant}: policy.model={policy.model} has no such weights; leave it null"
        )
    others = sorted({variant for variant in variants.values() if variant not in (None, policy.variant)})
    parts = {other: ", ".join(part for part, variant in variants.items() if variant == other) for other in others}
    notes = [f"policy.model has only {other} weights for {parts[other]}, so these are loaded" for other in others]
    return replace(pipeline, variant=others[0] if len(others) == 1 else None, notes=(*pipeline.notes, *notes))


def _check_latents(config: Config, pipeline: PipelineFiles) -> None:
    """Raises: ConfigError if neither the configuration nor the U-Net's file gives them a size."""
    if pipeline.unet is not None:
        try:
            latent_height_and_width(config.sampler.latent_size, pipeline.unet.get("sample_size"))
        except ValueError as error:
            raise ConfigError(f"policy.model={pipeline.model}: {error}") from None


def _check_chain(config: Config, pipeline: PipelineFiles) -> tuple[str, ...]:
    """Returns: what is to be said of it. Raises: ConfigError."""
    from raydense.diffusion.schedulers import settle_chain

    if pipeline.scheduler is None:
        return ()
    try:
        chain = settle_chain(pipeline.scheduler, config.steps.count, config.steps.spacing)
    except ValueError as error:
        raise ConfigError(f"policy.model={pipeline.model}: {error}") from None
    return (chain.note,) if chain.note else ()


def _rounding_note(config: Config) -> tuple[str, ...]:
    """A clip that is smaller than what rounding does to a log-ratio."""
    learner, clip = config.learner, config.train.clip
    noise = LOG_RATIO_NOISE.get(learner.dtype, 0.0)
    if clip >= 3 * noise:
        return ()
    better = "float16 has less, float32 none" if learner.dtype == "bfloat16" else "float32 has none"
    return (
        f"train.clip={clip:g} is below three times the error that learner.dtype={learner.dtype} has in a log-ratio, "
        f"about {noise:g}: it cuts noise too; {better}, raydense doctor measures it",
    )


def _check_lora(config: Config, pipeline: PipelineFiles) -> None:
    from raydense.build import initial_lora, lora_config
    from raydense.planning.footprint import lora_layers, lora_shapes

    if pipeline.unet is None:
        return
    layers = lora_layers(pipeline.unet)
    for target in config.policy.lora_targets:
        meant = [name for name in layers if name == target or name.endswith(f".{target}")]
        if not meant:
            raise ConfigError(f"policy.lora_targets: {target!r} matches nothing in the U-Net; remove or correct it")
        if others := [name for name in meant if not layers[name]]:
            raise ConfigError(
                f"policy.lora_targets: {target!r} matches {first_few(others, 1)}, which takes no LoRA; name linear "
                "layers and convolutions"
            )
    if config.policy.init_lora is not None:
        initial_lora(config, lora_shapes(pipeline.unet, lora_config(config)))


def _cut_off(config: Config, pipeline: PipelineFiles, sets: PromptSets) -> list[str]:
    """Notes on prompts that are too long, where the tokenizer is at hand. Raises: ConfigError if it is another's."""
    from transformers import CLIPTokenizer

    from raydense.pipelines.networks import load_part

    folder = ModelFolder("policy.model", config.policy.model, config.policy.revision, "tokenizer")
    try:
        tokenizer = load_part(CLIPTokenizer.from_pretrained, folder, vocabulary=True)
    except ConfigError:
        if folder.is_local:
            raise
        return []  # the samplers need it too, and say so
    text = pipeline.text_encoder or {}
    if len(tokenizer) > (known := text.get("vocab_size", VOCABULARY)):
        raise ConfigError(
            f"policy.model={config.policy.model}: its tokenizer has {len(tokenizer)} tokens, but its text encoder's "
            f"vocab_size={known}; give a pipeline whose tokenizer and text encoder belong together"
        )
    limit_tokens(tokenizer, text.get("max_position_embeddings", POSITIONS))
    return truncation_notes((*sets.train, *sets.unseen), tokenizer)


def check_scorer(scorer: SingleScorerConfig) -> None:
    """Raises: ConfigError if a local file of the scorer is not there, or its function is none."""
    match scorer.kind:
        case "imagereward":
            from raydense.rewards import imagereward

            if scorer.tokenizer is not None and not (Path(scorer.tokenizer).expanduser() / "vocab.txt").is_file():
                raise ConfigError(
                    f"scorer {scorer.name}: tokenizer={scorer.tokenizer} holds no vocab.txt; give a directory with the "
                    "one of bert-base-uncased"
                )
            if scorer.tokenizer is not None:
                ModelFolder(f"scorer {scorer.name}: tokenizer", scorer.tokenizer).check_files()
            if scorer.checkpoint is not None:
                _check_file(f"scorer {scorer.name}: checkpoint", scorer.checkpoint)
                imagereward.check_checkpoint(scorer.name, scorer.checkpoint)
        case "callable":
            from raydense.rewards.function import FunctionScorer

            try:
                FunctionScorer(scorer.name, scorer.target)
            except ValueError as error:
                raise ConfigError(str(error)) from None
        case "http":
            from raydense.rewards.http import read_token

            if scorer.token_env is not None:
                try:
                    read_token(scorer.name, scorer.token_env)
                except ValueError as error:
                    raise ConfigError(str(error)) from None
        case "clip":
            _check_clip(ModelFolder(f"scorer {scorer.name}: model", scorer.model, scorer.revision))
        case "aesthetic":
            from raydense.rewards.aesthetic import check_head

            folder = ModelFolder(f"scorer {scorer.name}: clip_model", scorer.clip_model, scorer.revision)
            _check_clip(folder, images_alone=True)
            _check_file(f"scorer {scorer.name}: head", scorer.head)
            check_head(scorer.name, scorer.head, folder)
        case "hpsv2":
            from raydense.rewards import hpsv2

            if scorer.checkpoint is not None:
                _check_file(f"scorer {scorer.name}: checkpoint", scorer.checkpoint)
                hpsv2.check_checkpoint(scorer.name, scorer.version, scorer.checkpoint)


def _check_clip(folder: ModelFolder, *, images_alone: bool = False) -> None:
    from transformers import CLIPImageProcessor, CLIPModel, CLIPProcessor

    from raydense.pipelines.networks import check_network, load_part

    if folder.is_local:
        processor = CLIPImageProcessor if images_alone else CLIPProcessor
        load_part(processor.from_pretrained, folder, vocabulary=not images_alone)
    check_network(CLIPModel, folder)


def _check_hub(scorer: SingleScorerConfig) -> None:
    """Raises: ConfigError if the scorer's CLIP model is neither a directory nor to be had from the hub."""
    if scorer.kind in ("clip", "aesthetic"):
        key = "model" if scorer.kind == "clip" else "clip_model"
        setting, location = f"scorer {scorer.name}: {key}", getattr(scorer, key)
        if local_directory(setting, location) is None:
            fetch_file(setting, location, scorer.revision, "config.json")


def needs_hub(prompts: str) -> bool:
    """Whether a prompt location is a set that only the hub has."""
    return prompts.startswith("set://hpsv2") and "?dir=" not in prompts


def _check_file(setting: str, location: str) -> None:
    if not Path(location).expanduser().is_file():
        raise ConfigError(f"{setting}={location} is not a file; give an existing one")
