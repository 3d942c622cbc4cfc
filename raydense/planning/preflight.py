"""What can be checked of a configuration before an actor starts or a weight is loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from raydense.config import Config, ConfigError
from raydense.core.locations import resolve
from raydense.core.messages import one_line
from raydense.diffusion.compiler import check_compiler
from raydense.diffusion.hub import probe_hub
from raydense.planning.units import PromptSets, read_prompt_sets
from raydense.prompts.prompt_sets import truncation_notes
from raydense.records.sinks import check_telemetry
from raydense.sections.rewards import SingleScorerConfig

PARTS = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")  # of a pipeline directory
SCHEDULER_FILE, UNET_FILE = "scheduler/scheduler_config.json", "unet/config.json"


def check_inputs(config: Config) -> PromptSets:
    """Reads the prompts, and checks the pipeline's scheduler and the scorers' files.

    Where the model is a hub id, its scheduler is checked if the hub or its cache can be reached; the samplers check
    it again in any case.
    Raises: ConfigError in one line.
    """
    sets = read_prompt_sets(config)
    check_policy(config)
    for scorer in config.reward.judges:
        check_scorer(scorer)
    check_telemetry(config)
    return replace(sets, notes=(*sets.notes, *_cut_off(config, sets)))


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


def check_policy(config: Config, fetch: bool = True) -> None:
    """Checks the pipeline's files, the chain against its scheduler, and the LoRA's targets against its U-Net.

    Args: fetch: whether to ask the hub for what is not in its cache; else that is not checked.
    Raises: ConfigError.
    """
    from raydense.build import initial_lora, lora_config
    from raydense.diffusion.ddim import make_schedule
    from raydense.planning.footprint import lora_shapes, module_names

    if config.policy.compile and not os.environ.get("RAY_ADDRESS"):  # else the nodes that compile say so
        try:
            check_compiler()
        except FileNotFoundError as error:
            raise ConfigError(str(error)) from None
    if (directory := local_directory("policy.model", config.policy.model)) is not None:
        for part in PARTS:
            if not (directory / part).is_dir():
                raise ConfigError(f"policy.model={config.policy.model} has no {part}/; give a whole pipeline directory")
    elif fetch:
        _fetch(config)
    if (scheduler := model_file(config, SCHEDULER_FILE)) is not None:
        try:
            make_schedule(scheduler, config.steps.count, config.steps.eta)
        except ValueError as error:
            raise ConfigError(str(error)) from None
    if (unet := model_file(config, UNET_FILE)) is not None:
        names = module_names(unet)
        for target in config.policy.lora_targets:
            if not any(name == target or name.endswith(f".{target}") for name in names):
                raise ConfigError(f"policy.lora_targets: {target!r} matches nothing in the U-Net; remove or correct it")
        if config.policy.init_lora is not None:
            initial_lora(config, lora_shapes(unet, lora_config(config)))


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


def local_directory(setting: str, location: str) -> Path | None:
    """The directory that a location names; None for a hub id (`name` or `owner/name`).

    Raises: ConfigError if it looks like a path and there is no such directory.
    """
    try:
        path = Path(resolve(location)).expanduser()
    except FileNotFoundError as error:
        raise ConfigError(f"{setting}={error}; give a directory or a hub id") from None
    if path.is_dir():
        return path
    if path.exists() or location.startswith((".", "~")) or path.is_absolute() or location.count("/") > 1:
        raise ConfigError(f"{setting}={location} is not a directory; give an existing one or a hub id")
    return None


def model_file(config: Config, name: str) -> Mapping[str, Any] | None:
    """A JSON file of the pipeline, from its directory or from the hub's cache; None where neither has it.

    Raises: ConfigError if it cannot be read.
    """
    directory = local_directory("policy.model", config.policy.model)
    path = directory / name if directory else _cached(config.policy.model, config.policy.revision, name)
    if path is None:
        return None
    try:
        content: Mapping[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"policy.model={config.policy.model}: {name} cannot be read ({error})") from None
    return content


def needs_hub(prompts: str) -> bool:
    """Whether a prompt location is a set that only the hub has."""
    return prompts.startswith("set://hpsv2") and "?dir=" not in prompts


def _fetch(config: Config) -> None:
    """The small files that the checks read, into the hub's cache. Raises: ConfigError if they cannot be had."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils.logging import set_verbosity_error

    set_verbosity_error()  # type: ignore[no-untyped-call]  # its retries are a line each
    policy = config.policy
    for name in (SCHEDULER_FILE, UNET_FILE, "vae/config.json", "text_encoder/config.json"):
        if _cached(policy.model, policy.revision, name) is not None:
            continue
        try:
            probe_hub()
            hf_hub_download(policy.model, name, revision=policy.revision)
        except Exception as error:  # the client's own, the HTTP library's and the operating system's: no common base
            reason = one_line(error)
            raise ConfigError(
                f"policy.model={policy.model} cannot be had from the hub ({reason}); give a pipeline directory, or run "
                "where the hub can be reached"
            ) from None


def _cached(model: str, revision: str | None, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, name, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _check_file(setting: str, location: str) -> None:
    if not Path(location).expanduser().is_file():
        raise ConfigError(f"{setting}={location} is not a file; give an existing one")
