"""The models that evaluating and drawing compare: the base, and LoRAs of runs and files, of any rank, in one policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from raydense.config import Config, ConfigError, load_run_config
from raydense.core.types import FloatArray, PolicyWeights
from raydense.diffusion.lora_files import KNOWN_FILES, LoraFile, check_names, check_shapes, padded, read_lora
from raydense.families.family import Family
from raydense.pipelines.pipeline_files import PipelineFiles
from raydense.planning.footprint import lora_layers, lora_shapes
from raydense.planning.pinning import BASE_MODEL, Pinned, changed_inputs, continue_inputs
from raydense.records.inputs import Pin, read_pins
from raydense.records.run_dir import RunDirectory
from raydense.wiring.chains import ChainSettings, judged_by, trained_by
from raydense.wiring.policies import family_for, lora_config, resolved

BASE = "base"


@dataclass(frozen=True)
class Source:
    """A LoRA as the user named it. run, config: the directory of the run that made it, where it lies in one."""

    name: str
    location: str
    config: Config | None
    run: Path | None = None


@dataclass(frozen=True)
class Model:
    """A name for tables, and the weights to sample with; version 0 is the base model."""

    name: str
    weights: PolicyWeights


def find_sources(arguments: Sequence[str]) -> list[Source]:
    """The LoRA of each run directory, and each LoRA file or directory, with the shortest names that tell them apart.

    Raises: ConfigError for what is not there, for a run that has no LoRA yet, and for a LoRA that is given twice.
    """
    sources = [_source(argument) for argument in arguments]
    given: dict[Path, str] = {}
    for source, argument in zip(sources, arguments, strict=True):
        place = Path(source.location).expanduser().resolve()
        if place in given:
            raise ConfigError(
                f"{argument} is the same LoRA as {given[place]}, which is given before; leave one of them out"
            )
        given[place] = argument
    names = [source.name for source in sources]
    if len(set(names)) == len(names) and BASE not in names:
        return sources
    return [replace(source, name=argument) for argument, source in zip(arguments, sources, strict=True)]


def _source(argument: str) -> Source:
    path = Path(argument).expanduser().resolve()
    if not path.exists():
        raise ConfigError(f"{argument} is not there; give a run's directory or a LoRA file")
    if (path / "config.yaml").is_file():
        if not (path / "lora").is_dir():
            raise ConfigError(f"{argument} is a run without a LoRA; it writes one with its first checkpoint")
        return Source(path.name, str(path / "lora"), load_run_config(path / "config.yaml"), path)
    folder = path.parent if path.name in KNOWN_FILES else path
    if folder.name in ("lora", "lora-last-step") and (run := folder.parent / "config.yaml").is_file():
        name = folder.parent.name if folder.name == "lora" else f"{folder.parent.name} (last step)"
        return Source(name, argument, load_run_config(run), folder.parent)
    return Source(folder.stem if folder.is_file() else folder.name, argument, None)


def shared_config(sources: Sequence[Source], chosen: Config | None) -> Config:
    """The configuration that all are drawn with, the chosen one or the first run's.

    Raises: ConfigError if there is none, or if they are of different base models.
    """
    config = chosen or next((source.config for source in sources if source.config), None)
    if config is None:
        raise ConfigError("a LoRA file does not say how to sample; give the run it is of, --preset or --config")
    for source in sources:
        if source.config is None:
            continue
        ours, theirs = (f"{c.policy.model}@{c.policy.revision}" for c in (config, source.config))
        if ours != theirs:
            raise ConfigError(f"{source.name} is of the base model {theirs}, not {ours}; compare models of one base")
    of_its_start = {"init_lora": None, "text_encoder_lora": "refuse"}  # a file that is perhaps gone by now
    return config.model_copy(update={"policy": config.policy.model_copy(update=of_its_start)})


def chain_notes(config: Config, pipeline: PipelineFiles, sources: Sequence[Source]) -> list[str]:
    """A line for each run that learned, or was judged, by another chain than the one that all are drawn with here."""

    def chains(config: Config) -> tuple[ChainSettings, ChainSettings, float]:
        whole = resolved(config, family_for(config, pipeline))
        return trained_by(whole), judged_by(whole), whole.sampler.guidance_scale

    trained, drawn, guidance = chains(config)
    notes = []
    for source in sources:
        if source.config is None or chains(source.config) == (trained, drawn, guidance):
            continue
        own, own_drawn, own_guidance = chains(source.config)
        notes.append(
            f"{source.name} was trained with {own}, and judged with {own_drawn}, guidance {own_guidance:g}; here all "
            f"are drawn with {drawn}, guidance {guidance:g}"
        )
    return notes


def continue_sources(
    config: Config, sources: Sequence[Source], *, accept_changes: bool, leave_out: tuple[str, ...] = ()
) -> Pinned:
    """What the sources' runs were made from, as far as `config` reads it, and as it lies there now.

    Args: accept_changes: whether to go on with what has changed. leave_out: as of `continue_inputs`.
    Raises: ConfigError if it has changed, or if their base models were others under one name.
    """
    runs = [(source, source.run) for source in sources if source.run]
    if not runs or read_pins(runs[0][1]) is None:
        return Pinned(config, {})
    (first, root), *others = runs
    pinned = continue_inputs(config, RunDirectory(root), accept_changes=accept_changes, leave_out=leave_out)
    changes = [
        f"{source.name} is of another {change} than {first.name}"
        for source, run in others
        if (change := _other_base(pinned, read_pins(run)))
    ]
    if changes and not accept_changes:
        raise ConfigError(f"{'; '.join(changes)}; compare models of one base, or go on by --accept-changes")
    return replace(pinned, accepted=(*pinned.accepted, *changes))


def _other_base(pinned: Pinned, theirs: Mapping[str, Pin] | None) -> str:
    """What they call by the same name and is another; empty where there is nothing to compare."""
    ours, known = pinned.pins[BASE_MODEL], (theirs or {}).get(BASE_MODEL)
    if known is None or known.written != ours.written:
        return ""
    return ", ".join(changed_inputs({BASE_MODEL: ours}, {BASE_MODEL: known}))


def fit_models(
    config: Config, pipeline: PipelineFiles, sources: Sequence[Source], setting: str
) -> tuple[Config, list[Model]]:
    """The base model and every LoRA as weights of one policy, and the configuration of that policy.

    The policy has the largest rank, alpha = rank, and every layer that one of them adapts. A smaller LoRA is filled
    with zeros, and its B takes its own alpha / rank, so that it predicts what it predicted alone.
    Args: setting: where the locations come from, for errors.
    Raises: ConfigError for a file that is no LoRA of this U-Net.
    """
    of_text = config.policy.text_encoder_lora
    files = [read_lora(source.location, setting, of_text, pipeline) for source in sources]
    family = family_for(config, pipeline)
    if pipeline[pipeline.layout.denoiser] is None:
        raise ConfigError(f"policy.model={config.policy.model} is not on this machine; give its directory")
    layers = lora_layers(family)
    for file in files:
        _check_fits(file, config, family, layers)
    rank = max([file.rank for file in files], default=config.policy.lora_rank)
    adapted = sorted({module for file in files for module in file.ranks})
    joint = _adapted(config, rank, adapted or resolved(config, family).policy.lora_targets or ())
    zeros: dict[str, FloatArray] = {
        name: np.zeros(shape, np.float32) for name, shape in lora_shapes(family, lora_config(joint)).items()
    }
    models = [Model(BASE, PolicyWeights.of(0, zeros))]
    for version, (source, file) in enumerate(zip(sources, files, strict=True), 1):
        models.append(Model(source.name, PolicyWeights.of(version, {**zeros, **_at_rank(file, rank)})))
    return joint, models


def _check_fits(file: LoraFile, config: Config, family: Family, layers: Mapping[str, bool]) -> None:
    """Raises: ConfigError unless all that the file has belongs to layers of this U-Net."""
    known = [module for module in file.ranks if layers.get(module)]
    expected = lora_shapes(family, lora_config(_adapted(config, file.rank, known))) if known else {}
    check_names(file, expected)
    check_shapes(file, expected)


def _adapted(config: Config, rank: int, modules: Sequence[str]) -> Config:
    policy = {"lora_rank": rank, "lora_alpha": float(rank), "lora_targets": tuple(modules)}
    return config.model_copy(update={"policy": config.policy.model_copy(update=policy)})


def _at_rank(file: LoraFile, rank: int) -> dict[str, FloatArray]:
    """Its tensors at a larger rank, with the alpha of that rank."""
    scale = np.float32(file.alpha / file.rank)
    return {
        name: padded(name, array if ".lora_A." in name else array * scale, rank) for name, array in file.tensors.items()
    }
