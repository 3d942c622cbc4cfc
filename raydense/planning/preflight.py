"""What can be checked of a configuration before an actor starts or a weight is loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from raydense.config import Config, ConfigError
from raydense.core.locations import resolve
from raydense.core.messages import first_few
from raydense.diffusion.compiler import check_compiler
from raydense.diffusion.pipeline_files import PipelineFiles, local_directory, read_pipeline
from raydense.diffusion.stable_diffusion import (
    POSITIONS,
    VOCABULARY,
    check_parts,
    latent_height_and_width,
    limit_tokens,
)
from raydense.planning.units import PromptSets, read_prompt_sets
from raydense.prompts.prompt_sets import truncation_notes
from raydense.records.sinks import check_telemetry
from raydense.sections.rewards import SingleScorerConfig


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
    return pipeline


def check_pipeline(config: Config, *, fetch: bool = True) -> PipelineFiles:
    """Reads the pipeline's files, and checks its parts, the chain on its scheduler, and the LoRA on its U-Net.

    Args: fetch: whether to ask the hub for files that are not in its cache; else what needs them is not checked.
    Returns: the files, with notes on what is taken otherwise than they have it.
    Raises: ConfigError.
    """
    if config.policy.compile and not os.environ.get("RAY_ADDRESS"):  # else the nodes that compile say so
        try:
            check_compiler()
        except FileNotFoundError as error:
            raise ConfigError(str(error)) from None
    pipeline = read_pipeline(config.policy.model, config.policy.revision, fetch=fetch)
    check_parts(pipeline)
    _check_latents(config, pipeline)
    notes = _check_chain(config, pipeline)
    _check_lora(config, pipeline)
    return replace(pipeline, notes=notes)


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

    policy = config.policy
    try:
        tokenizer = CLIPTokenizer.from_pretrained(
            resolve(policy.model), subfolder="tokenizer", revision=policy.revision
        )
    except OSError:
        return []  # the samplers need it too, and say so
    text = pipeline.text_encoder or {}
    if len(tokenizer) > (known := text.get("vocab_size", VOCABULARY)):
        raise ConfigError(
            f"policy.model={policy.model}: its tokenizer has {len(tokenizer)} tokens, but its text encoder's "
            f"vocab_size={known}; give a pipeline whose tokenizer and text encoder belong together"
        )
    limit_tokens(tokenizer, text.get("max_position_embeddings", POSITIONS))
    return truncation_notes((*sets.train, *sets.unseen), tokenizer)


def check_scorer(scorer: SingleScorerConfig) -> None:
    """Raises: ConfigError if a local file of the scorer is not there, or its function is none."""
    match scorer.kind:
        case "imagereward":
            if scorer.checkpoint is not None:
                _check_file(f"scorer {scorer.name}: checkpoint", scorer.checkpoint)
            if scorer.tokenizer is not None and not (Path(scorer.tokenizer).expanduser() / "vocab.txt").is_file():
                raise ConfigError(
                    f"scorer {scorer.name}: tokenizer={scorer.tokenizer} holds no vocab.txt; give a directory with the "
                    "one of bert-base-uncased"
                )
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
            local_directory(f"scorer {scorer.name}: model", scorer.model)
        case "aesthetic":
            local_directory(f"scorer {scorer.name}: clip_model", scorer.clip_model)
            _check_file(f"scorer {scorer.name}: head", scorer.head)
        case "hpsv2":
            if scorer.checkpoint is not None:
                _check_file(f"scorer {scorer.name}: checkpoint", scorer.checkpoint)


def needs_hub(prompts: str) -> bool:
    """Whether a prompt location is a set that only the hub has."""
    return prompts.startswith("set://hpsv2") and "?dir=" not in prompts


def _check_file(setting: str, location: str) -> None:
    if not Path(location).expanduser().is_file():
        raise ConfigError(f"{setting}={location} is not a file; give an existing one")
