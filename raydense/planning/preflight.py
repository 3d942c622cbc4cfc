"""What can be checked of a configuration before an actor starts or a weight is loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from raydense.config import Config, ConfigError
from raydense.core.locations import resolve
from raydense.diffusion.compiler import check_compiler
from raydense.diffusion.pipeline_files import PipelineFiles, fetch_file, local_directory, read_pipeline
from raydense.planning.units import PromptSets, read_prompt_sets
from raydense.prompts.prompt_sets import truncation_notes
from raydense.records.sinks import check_telemetry
from raydense.sections.rewards import SingleScorerConfig


@dataclass(frozen=True)
class Inputs:
    """What a run was found to be made of, for all that follows: it is read once."""

    prompts: PromptSets
    pipeline: PipelineFiles


def check_inputs(config: Config) -> Inputs:
    """Reads prompts and pipeline, and checks them, the scorers' files and where metrics go.

    Raises: ConfigError in one line.
    """
    prompts, pipeline = read_prompt_sets(config), check_models(config)
    check_telemetry(config)
    return Inputs(replace(prompts, notes=(*prompts.notes, *_cut_off(config, prompts))), pipeline)


def check_models(config: Config, *, fetch: bool = True) -> PipelineFiles:
    """`check_pipeline`, and the files of all judges. Raises: ConfigError."""
    pipeline = check_pipeline(config, fetch=fetch)
    for scorer in config.reward.judges:
        check_scorer(scorer)
        if fetch:
            _check_hub(scorer)
    return pipeline


def check_pipeline(config: Config, *, fetch: bool = True) -> PipelineFiles:
    """Reads the pipeline's files, and checks the chain against its scheduler and the LoRA against its U-Net.

    Args: fetch: whether to ask the hub for files that are not in its cache; else what needs them is not checked.
    Raises: ConfigError.
    """
    if config.policy.compile and not os.environ.get("RAY_ADDRESS"):  # else the nodes that compile say so
        try:
            check_compiler()
        except FileNotFoundError as error:
            raise ConfigError(str(error)) from None
    pipeline = read_pipeline(config.policy.model, config.policy.revision, fetch=fetch)
    _check_chain(config, pipeline)
    _check_lora(config, pipeline)
    return pipeline


def _check_chain(config: Config, pipeline: PipelineFiles) -> None:
    from raydense.diffusion.ddim import make_schedule

    if pipeline.scheduler is not None:
        try:
            make_schedule(pipeline.scheduler, config.steps.count, config.steps.eta)
        except ValueError as error:
            raise ConfigError(str(error)) from None


def _check_lora(config: Config, pipeline: PipelineFiles) -> None:
    from raydense.build import initial_lora, lora_config
    from raydense.planning.footprint import lora_shapes, module_names

    if pipeline.unet is None:
        return
    names = module_names(pipeline.unet)
    for target in config.policy.lora_targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise ConfigError(f"policy.lora_targets: {target!r} matches nothing in the U-Net; remove or correct it")
    if config.policy.init_lora is not None:
        initial_lora(config, lora_shapes(pipeline.unet, lora_config(config)))


def _cut_off(config: Config, sets: PromptSets) -> list[str]:
    """Notes on prompts that are too long, where the tokenizer is at hand."""
    from transformers import CLIPTokenizer

    policy = config.policy
    try:
        tokenizer = CLIPTokenizer.from_pretrained(
            resolve(policy.model), subfolder="tokenizer", revision=policy.revision
        )
    except OSError:
        return []  # the samplers need it too, and say so
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
