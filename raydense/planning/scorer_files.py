"""What can be checked of a scorer's files before it is built."""

from __future__ import annotations

from pathlib import Path

from raydense.config import ConfigError
from raydense.pipelines.model_folder import ModelFolder
from raydense.pipelines.pipeline_files import fetch_file, local_directory
from raydense.sections.rewards import SingleScorerConfig


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


def check_hub(scorer: SingleScorerConfig) -> None:
    """Raises: ConfigError if the scorer's CLIP model is neither a directory nor to be had from the hub."""
    if scorer.kind in ("clip", "aesthetic"):
        key = "model" if scorer.kind == "clip" else "clip_model"
        setting, location = f"scorer {scorer.name}: {key}", getattr(scorer, key)
        if local_directory(setting, location) is None:
            fetch_file(setting, location, scorer.revision, "config.json")


def _check_file(setting: str, location: str) -> None:
    if not Path(location).expanduser().is_file():
        raise ConfigError(f"{setting}={location} is not a file; give an existing one")
