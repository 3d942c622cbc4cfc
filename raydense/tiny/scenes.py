"""Captioned 64 x 64 scenes: the caption grammar, the renderer and the train/unseen split.

A caption is "a COLOUR SHAPE" or "a COLOUR SHAPE above|left of a COLOUR SHAPE" with two
different colours: 18 single-object and 540 two-object captions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

IMAGE_SIZE = 64
BACKGROUND = (244, 243, 238)
PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (212, 32, 40),
    "orange": (250, 140, 20),
    "yellow": (245, 220, 40),
    "green": (40, 160, 70),
    "blue": (35, 85, 210),
    "purple": (140, 50, 165),
}
COLOURS = tuple(PALETTE)
SHAPES = ("circle", "square", "triangle")
RELATIONS = ("above", "left of")
UNSEEN_COUNT = 54

_SPLIT_SEED = 20240
_SUPERSAMPLE = 4
_OBJECT = rf"an? ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_CAPTION = re.compile(rf"{_OBJECT}(?: ({'|'.join(RELATIONS)}) {_OBJECT})?")


@dataclass(frozen=True)
class SceneObject:
    """One coloured shape."""

    colour: str
    shape: str

    def __str__(self) -> str:
        article = "an" if self.colour[0] in "aeiou" else "a"
        return f"{article} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """What a caption asks for: `first`, or `first` standing in `relation` to `second`."""

    first: SceneObject
    relation: str | None = None
    second: SceneObject | None = None

    @property
    def objects(self) -> tuple[SceneObject, ...]:
        """The one or two objects, in caption order."""
        return (self.first,) if self.second is None else (self.first, self.second)

    @property
    def caption(self) -> str:
        """The caption that `parse` reads back as this scene."""
        return str(self.first) if self.second is None else f"{self.first} {self.relation} {self.second}"


def parse(caption: str) -> Scene:
    """Reads a caption; case and surrounding or repeated spaces do not matter.

    Raises: ValueError if the caption is not in the grammar.
    """
    match = _CAPTION.fullmatch(" ".join(caption.lower().split()).rstrip("."))
    if match is None:
        raise ValueError(
            f"caption {caption!r} is not a scene; write 'a COLOUR SHAPE' or 'a COLOUR SHAPE above|left of "
            f"a COLOUR SHAPE' with COLOUR in {', '.join(COLOURS)} and SHAPE in {', '.join(SHAPES)}"
        )
    colour, shape, relation, second_colour, second_shape = match.groups()
    if relation is None:
        return Scene(SceneObject(colour, shape))
    if colour == second_colour:
        raise ValueError(f"caption {caption!r} gives both objects the colour {colour}; use two different colours")
    return Scene(SceneObject(colour, shape), relation, SceneObject(second_colour, second_shape))


@cache
def single_captions() -> tuple[str, ...]:
    """The 18 one-object captions."""
    return tuple(str(SceneObject(colour, shape)) for colour in COLOURS for shape in SHAPES)


@cache
def pair_captions() -> tuple[str, ...]:
    """The 540 two-object captions."""
    objects = [SceneObject(colour, shape) for colour in COLOURS for shape in SHAPES]
    return tuple(
        Scene(first, relation, second).caption
        for relation in RELATIONS
        for first in objects
        for second in objects
        if first.colour != second.colour
    )


@cache
def split_captions() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The two-object captions as (train, unseen): 486 and 54, the same in every process."""
    captions = pair_captions()
    chosen = np.random.Generator(np.random.PCG64(_SPLIT_SEED)).permutation(len(captions))[:UNSEEN_COUNT]
    held_out = set(chosen.tolist())
    train = tuple(caption for index, caption in enumerate(captions) if index not in held_out)
    unseen = tuple(caption for index, caption in enumerate(captions) if index in held_out)
    return train, unseen


def training_captions() -> tuple[str, ...]:
    """All captions that training may see: the 486 train captions and the 18 single-object ones."""
    return split_captions()[0] + single_captions()


def render(scene: Scene, seed: int | Sequence[int]) -> npt.NDArray[np.uint8]:
    """Draws the scene with jittered sizes and positions.

    Args:
        scene: what to draw.
        seed: the only source of randomness; equal arguments give equal pixels.

    Returns: uint8 [64, 64, 3], RGB.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    side = IMAGE_SIZE * _SUPERSAMPLE
    canvas = Image.new("RGB", (side, side), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for item, (x, y, radius) in zip(scene.objects, _place(scene, rng), strict=True):
        _draw_shape(draw, item, x * _SUPERSAMPLE, y * _SUPERSAMPLE, radius * _SUPERSAMPLE)
    return np.asarray(canvas.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX))


def render_batch(captions: Sequence[str], seeds: Sequence[int | Sequence[int]]) -> npt.NDArray[np.uint8]:
    """Draws one scene a caption: uint8 [B, 64, 64, 3]."""
    return np.stack([render(parse(caption), seed) for caption, seed in zip(captions, seeds, strict=True)])


def _place(scene: Scene, rng: np.random.Generator) -> list[tuple[float, float, float]]:
    """Centre x, centre y and radius of every object, in pixels; two objects never touch."""
    if scene.second is None:
        x, y = 32 + rng.uniform(-10, 10, size=2)
        return [(x, y, rng.uniform(10, 14))]
    across = 32 + rng.uniform(-8, 8, size=2)
    along = np.array([16.5, 47.5]) + rng.uniform(-1.5, 1.5, size=2)
    radii = rng.uniform(9.5, 12.5, size=2)
    centres = zip(across, along, strict=True) if scene.relation == "above" else zip(along, across, strict=True)
    return [(x, y, radius) for (x, y), radius in zip(centres, radii.tolist(), strict=True)]


def _draw_shape(draw: ImageDraw.ImageDraw, item: SceneObject, x: float, y: float, radius: float) -> None:
    fill = PALETTE[item.colour]
    if item.shape == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    elif item.shape == "square":
        half = 0.9 * radius
        draw.rectangle((x - half, y - half, x + half, y + half), fill=fill)
    else:
        base, half = y + 0.9 * radius, 1.1 * radius
        draw.polygon([(x, y - 1.05 * radius), (x + half, base), (x - half, base)], fill=fill)
