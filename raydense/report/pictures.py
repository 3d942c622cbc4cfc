"""A run's pictures for a page: strips over the stages, base beside tuned, and what became of each judged prompt."""

from __future__ import annotations

import base64
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import UnidentifiedImageError

from raydense.core.statistics import Interval, clustered_interval
from raydense.records.grids import Grid, read_grid
from raydense.records.thumbnails import encode, is_png, read_thumbnails
from raydense.report.run_data import RunData
from raydense.report.svg import MUTED, SERIES, Figure, draw

SHOWN = 4  # prompts that gained most, and as many that lost most, of each set
STRIP = 12  # pictures of a strip at most: the base model, the last stage, and evenly spaced ones between


@dataclass(frozen=True)
class Picture:
    """An image with its text alternative; a small one is magnified without smoothing."""

    source: str
    alternative: str
    label: str = ""
    pixelated: bool = False

    @staticmethod
    def of(file: bytes, alternative: str, label: str = "") -> Picture:
        kind = "png" if is_png(file) else "jpeg"
        return Picture(f"data:image/{kind};base64,{base64.b64encode(file).decode()}", alternative, label, kind == "png")


@dataclass(frozen=True)
class PromptPictures:
    """One prompt of the grids: its first picture over the stages, and all of its pictures before and after."""

    prompt: str
    strip: tuple[Picture, ...]
    before: tuple[Picture, ...]
    after: tuple[Picture, ...]


@dataclass(frozen=True)
class PromptGain:
    """What became of a judged prompt: the trained-on score before and after, and every judge's gain."""

    prompt: str
    before: float
    after: float
    gains: Mapping[str, float]
    pictures: tuple[Picture, ...]  # base and tuned, or none

    @property
    def gain(self) -> float:
        return self.after - self.before


@dataclass(frozen=True)
class SetGains:
    """The judged prompts of one set, the one that gained most first, and each judge's mean gain over them."""

    name: str
    prompts: tuple[PromptGain, ...]
    means: Mapping[str, Interval]
    figure: Figure

    @property
    def best(self) -> Sequence[PromptGain]:
        return self.prompts[:SHOWN]

    @property
    def worst(self) -> Sequence[PromptGain]:
        return self.prompts[max(SHOWN, len(self.prompts) - SHOWN) :][::-1]


def grid_pictures(run: RunData) -> list[PromptPictures]:
    """Of the grids drawn so far; nothing before the base model's is."""
    grids = list(_grids(run.root / "images"))
    if not grids:
        return []
    (_, first), (last_label, last) = grids[0], grids[-1]
    result = []
    for row, prompt in enumerate(first.prompts):

        def picture(label: str, image: NDArray[np.uint8], prompt: str = prompt) -> Picture:
            return Picture.of(encode(image), f"“{prompt}”, {label}", label)

        strip = tuple(picture(label, grid.images[row, 0]) for label, grid in grids)
        before = tuple(picture("base model", image) for image in first.images[row])
        after = tuple(picture(last_label, image) for image in last.images[row]) if len(grids) > 1 else ()
        result.append(PromptPictures(prompt, strip if len(grids) > 1 else (), before, after))
    return result


def _grids(directory: Path) -> Iterator[tuple[str, Grid]]:
    """The base model's and the stages' grids that can be read, with what to call them; no more than `STRIP`."""
    stages = sorted(directory.glob("stage-[0-9][0-9][0-9][0-9].png"))
    chosen = np.unique(np.linspace(0, len(stages) - 1, min(len(stages), STRIP - 1)).astype(int))
    for path in (directory / "base.png", *(stages[index] for index in chosen)):
        label = "base model" if path.stem == "base" else f"after stage {int(path.stem.removeprefix('stage-'))}"
        try:
            yield label, read_grid(path)
        except (OSError, ValueError, UnidentifiedImageError):
            continue  # from before grids said what is in them, or damaged: the report goes on without it


def prompt_gains(run: RunData) -> list[SetGains]:
    """By prompt set, once the tuned model has been judged."""
    if run.scores is None:
        return []
    before, after = _thumbnails(run.root / "images")
    return [_set_gains(run, name, by_prompt, before, after) for name, by_prompt in run.scores.items()]


def _set_gains(
    run: RunData, name: str, by_prompt: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]
) -> SetGains:
    scorer, gains = run.config.reward.scorer.name, []
    changes: dict[str, list[NDArray[np.float64]]] = {}
    for number, (prompt, by_judge) in enumerate(by_prompt.items()):
        pictures: tuple[Picture, ...] = ()
        if number < len(before.get(name, ())) and number < len(after.get(name, ())):
            pictures = (
                Picture.of(before[name][number], f"“{prompt}”, base model", "base"),
                Picture.of(after[name][number], f"“{prompt}”, tuned model", "tuned"),
            )
        for judge, scores in by_judge.items():
            first, then = (np.array(scores[when], float) for when in ("before", "after"))  # NaN for null
            changes.setdefault(judge, []).append(then - first)
        own = by_judge[scorer]
        means = {judge: float(values[-1].mean()) for judge, values in changes.items()}
        gains.append(PromptGain(prompt, float(np.mean(own["before"])), float(np.mean(own["after"])), means, pictures))
    ordered = tuple(sorted(gains, key=lambda gain: -gain.gain))
    intervals = {judge: clustered_interval(values) for judge, values in changes.items()}
    return SetGains(name, ordered, intervals, _gain_figure(name, scorer, [gain.gain for gain in ordered]))


def _gain_figure(name: str, scorer: str, gains: Sequence[float]) -> Figure:
    won = sum(gain > 0 for gain in gains)
    return draw(
        f"gains-{''.join(c if c.isalnum() else '-' for c in name)}",
        f"Gain by prompt: {name}",
        f"Mean change of {scorer}'s score over a prompt's pictures, same seeds before and after; a bar a prompt.",
        f"Bars of the gain of {len(gains)} prompts, sorted: from {gains[0]:+.3g} down to {gains[-1]:+.3g}; "
        f"{won} of {len(gains)} gained.",
        partial(_paint_gains, gains=gains),
    )


def _paint_gains(axes: Any, gains: Sequence[float]) -> None:
    colours = [SERIES[2] if gain > 0 else SERIES[1] for gain in gains]
    axes.bar(range(1, len(gains) + 1), gains, color=colours, width=0.85 if len(gains) < 100 else 1.0)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.set_xlabel("prompts, most gained first")
    axes.grid(visible=False, axis="x")


def _thumbnails(directory: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The judged prompts' pictures of the base and of the tuned model."""
    files = sorted(directory.glob("judged-*.zip"))
    if len(files) < 2:
        return {}, {}
    try:
        return read_thumbnails(files[0]), read_thumbnails(files[-1])
    except (OSError, zipfile.BadZipFile):
        return {}, {}
