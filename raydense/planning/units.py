"""What a run will do, computed from the config alone: units of a stage, and what is rendered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raydense.config import Config, ConfigError
from raydense.core.types import RenderUnit, Scales, WorkUnit
from raydense.prompts.prompt_sets import PromptSet, evenly_spaced, load_prompts, prompt_at
from raydense.sections.roles import RENDER_BATCH


@dataclass(frozen=True)
class PromptSets:
    """Prompts to train on, and prompts that alignment never sees (perhaps none)."""

    train: tuple[str, ...]
    unseen: tuple[str, ...]
    notes: tuple[str, ...] = ()  # what was left out while reading

    def named(self) -> dict[str, tuple[str, ...]]:
        return {name: prompts for name, prompts in (("train", self.train), ("unseen", self.unseen)) if prompts}


def read_prompt_sets(config: Config) -> PromptSets:
    """Reads both sets. Raises: ConfigError if one cannot be used, or if an unseen prompt is trained on."""
    train = _read("prompts.train", config.prompts.train)
    unseen = _read("prompts.unseen", config.prompts.unseen) if config.prompts.unseen else PromptSet(())
    if shared := sorted(set(train.prompts) & set(unseen.prompts)):
        raise ConfigError(f"prompts.unseen holds {shared[0]!r}, which prompts.train holds too; remove it from one")
    return PromptSets(train.prompts, unseen.prompts, train.notes + unseen.notes)


def _read(setting: str, location: str) -> PromptSet:
    try:
        return load_prompts(location)
    except ValueError as error:
        raise ConfigError(f"{setting}={error}") from None


def stage_units(
    config: Config, prompts: Sequence[str], stage: int, weights_version: int, scales: Scales = ()
) -> list[WorkUnit]:
    """The work units of a stage, `sampler.unit_prompts` groups each."""
    size, total = config.sampler.prompts_at_once, config.stage.groups
    units = []
    for index, start in enumerate(range(0, total, size)):
        groups = tuple(range(start, min(start + size, total)))
        chosen = tuple(prompt_at(prompts, stage * total + g, config.seed) for g in groups)
        units.append(WorkUnit(stage, index, groups, chosen, weights_version, scales))
    return units


def render_units(prompts: Sequence[str], images_per_prompt: int, weights_version: int) -> list[RenderUnit]:
    """`images_per_prompt` pictures of each prompt, prompt by prompt; seeds follow the position alone."""
    jobs = [(prompt, p * images_per_prompt + i) for p, prompt in enumerate(prompts) for i in range(images_per_prompt)]
    return [
        RenderUnit(tuple(p for p, _ in part), tuple(s for _, s in part), weights_version)
        for part in (jobs[i : i + RENDER_BATCH] for i in range(0, len(jobs), RENDER_BATCH))
    ]


def judged_prompts(config: Config, sets: PromptSets) -> dict[str, tuple[str, ...]]:
    """The prompts of each set that evaluation judges."""
    return {name: evenly_spaced(prompts, config.evaluate.prompts) for name, prompts in sets.named().items()}


def held_out_prompts(config: Config, sets: PromptSets) -> dict[str, tuple[str, ...]]:
    """What evaluation during training judges: the unseen prompts; the trained ones where there are no others."""
    judged = judged_prompts(config, sets)
    return {name: prompts for name, prompts in judged.items() if name == "unseen" or len(judged) == 1}


def evaluation_due(config: Config, step: int) -> bool:
    """Whether the held-out prompts are judged after this gradient step of the run."""
    every = config.evaluate.every_steps
    return every is not None and step > 0 and step % every == 0


def grid_prompts(config: Config, sets: PromptSets) -> tuple[str, ...]:
    """Rows of the image grids: half from each set."""
    named = list(sets.named().values())
    share = -(-config.evaluate.grid_prompts // len(named))
    rows = [prompt for prompts in named for prompt in evenly_spaced(prompts, share)]
    return tuple(rows[: config.evaluate.grid_prompts])
