"""Fixed-seed judging of one set of weights: scores for each prompt set, and the pictures of the grids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydense.config import Config
from raydense.core.interfaces import Fleet
from raydense.core.statistics import estimate
from raydense.core.types import FloatArray, RenderUnit
from raydense.planning.units import PromptSets, grid_prompts, judged_prompts, render_units
from raydense.records.scores import Judgement, as_list
from raydense.records.thumbnails import encode
from raydense.sections.roles import RENDER_BATCH

PICTURES_AT_ONCE = 1024  # that judging holds in memory: 0.8 GB at 512 x 512


def judge(config: Config, sets: PromptSets, fleet: Fleet[Any], weights_version: int) -> Judgement:
    """Scores `evaluate.prompts` prompts of each set with the weights that were broadcast last."""
    return judge_prompts(judged_prompts(config, sets), config.evaluate.images_per_prompt, fleet, weights_version)


def judge_prompts(
    sets: Mapping[str, Sequence[str]],
    per_prompt: int,
    fleet: Fleet[Any],
    weights_version: int,
    progress: Callable[[int], None] = lambda pictures: None,
) -> Judgement:
    """Scores `per_prompt` pictures of each prompt of each set, with the same noise whatever the weights.

    Args: progress: hears how many pictures were drawn since it last did. No more than `PICTURES_AT_ONCE` are held.
    """
    scores: dict[str, dict[str, FloatArray]] = {}
    failures: dict[str, str] = {}
    pictures: dict[str, list[bytes]] = {}
    for name, prompts in sets.items():
        parts: dict[str, list[FloatArray]] = {}
        drawn, pictures[name] = 0, []
        for units in _batches(render_units(prompts, per_prompt, weights_version)):
            for rendered in fleet.render(units):
                failures |= {name: why for name, why in rendered.failures.items() if name not in failures}
                for scorer, values in rendered.scores.items():
                    parts.setdefault(scorer, []).append(values)
                pictures[name] += [encode(image) for image in rendered.images[-drawn % per_prompt :: per_prompt]]
                drawn += len(rendered.images)
                progress(len(rendered.images))
        scores[name] = {scorer: np.concatenate(values).reshape(-1, per_prompt) for scorer, values in parts.items()}
    return Judgement(scores, pictures, failures)


def _batches(units: Sequence[RenderUnit]) -> Iterator[Sequence[RenderUnit]]:
    size = max(1, PICTURES_AT_ONCE // RENDER_BATCH)
    for start in range(0, len(units), size):
        yield units[start : start + size]


def draw_grid(config: Config, sets: PromptSets, fleet: Fleet[Any], weights_version: int) -> NDArray[np.uint8]:
    """Pictures of the grid's prompts: uint8 [rows, columns, h, w, 3]."""
    columns = config.evaluate.grid_images
    rendered = fleet.render(render_units(grid_prompts(config, sets), columns, weights_version))
    images = np.concatenate([r.images for r in rendered])
    return images.reshape(-1, columns, *images.shape[1:])


def score_table(
    config: Config, sets: PromptSets, before: Judgement, after: Judgement, last_step: Judgement | None = None
) -> dict[str, dict[str, dict[str, Any]]]:
    """By prompt set, prompt and scorer: the scores of every picture before and after, in the order of their seeds.

    Args: last_step: of its weights, where `after` is of the average.
    """
    judged = {"before": before, "after": after} | ({"last_step": last_step} if last_step else {})
    return {
        name: {
            prompt: {
                scorer: {when: as_list(one.scores[name][scorer][row]) for when, one in judged.items()}
                for scorer in before.scores[name]
            }
            for row, prompt in enumerate(prompts)
        }
        for name, prompts in judged_prompts(config, sets).items()
    }


def paired_gains(before: Judgement, after: Judgement) -> dict[str, dict[str, dict[str, Any]]]:
    """By scorer and prompt set: before, after, and the paired gain (same prompts, same seeds), where both are known."""
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for name, by_scorer in before.scores.items():
        for scorer, base in by_scorer.items():
            tuned = after.scores[name][scorer]
            known = ~np.isnan([base, tuned]).any(axis=(0, 2))
            if known.any():
                first, then = base[known], tuned[known]
                values: dict[str, NDArray[Any]] = {"before": first, "after": then, "gain": then.astype(float) - first}
                result.setdefault(scorer, {})[name] = {k: estimate(v).as_dict() for k, v in values.items()}
    return result
