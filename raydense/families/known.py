"""The family that a pipeline is of, by the class that its files name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from raydense.config import ConfigError
from raydense.families.family import Family, class_problems
from raydense.families.flux import Flux
from raydense.families.stable_diffusion import StableDiffusion
from raydense.families.stable_diffusion_3 import StableDiffusion3
from raydense.families.stable_diffusion_xl import StableDiffusionXL
from raydense.pipelines.pipeline_files import PipelineFiles

FAMILIES: Mapping[str, type[Family]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusion3Pipeline": StableDiffusion3,
    "FluxPipeline": Flux,
}


def family_of(files: PipelineFiles, **sizes: Any) -> Family:
    """The pipeline's. Args: sizes: as of `Family`."""
    return FAMILIES[files.kind](files, **sizes)


def check_classes(family: Family) -> None:
    """Raises: ConfigError in one line, if parts of the pipeline are of other classes than its family's."""
    _refuse(family, class_problems(family.files))


def check_parts(family: Family) -> None:
    """Raises: ConfigError in one line, with everything in the pipeline's files that its family cannot take.

    The parts are of its classes, and each can be built from its file.
    """
    _refuse(family, family.problems())


def _refuse(family: Family, problems: Iterable[str]) -> None:
    if found := [*problems]:
        raise ConfigError(f"policy.model={family.files.model}: {'; '.join(found)}; give {family.advice}")
