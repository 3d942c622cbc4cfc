"""A rule-based judge that reads scenes off the pixels. A monitor only: never train on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from raydense.tiny.scenes import BACKGROUND, COLOURS, PALETTE, SHAPES, Scene, parse

_MIN_AREA = 0.008  # share of the image below which a patch of colour is not an object
_MIN_COVERAGE = 0.5  # an edge pixel belongs to an object that covers at least half of it
_MIN_FIT = 0.72  # overlap with the ideal shape below which an object has no shape
_MAX_STRETCH = 1.45

_OFFSETS = np.array([PALETTE[colour] for colour in COLOURS], dtype=np.float32) - np.array(BACKGROUND, dtype=np.float32)
_LENGTHS = np.linalg.norm(_OFFSETS, axis=1)


@dataclass(frozen=True)
class SeenObject:
    """One patch of colour found in an image; `shape` is None where it looks like no known shape.

    x and y are its centroid and area its size, as shares of the image's width, height and area.
    """

    colour: str
    shape: str | None
    x: float
    y: float
    area: float


def score(images: npt.NDArray[np.uint8], prompts: Sequence[str]) -> npt.NDArray[np.float32]:
    """Says which images show exactly the scene that their prompt asks for.

    Args:
        images: uint8 [B, H, W, 3], RGB.
        prompts: B captions of the grammar in `scenes`.

    Returns: float32 [B], 1.0 where every colour, shape, relation and the object count are right, else 0.0.
    Raises: ValueError if the lengths differ or a prompt is not in the grammar.
    """
    if len(images) != len(prompts):
        raise ValueError(f"got {len(images)} images and {len(prompts)} prompts; give one prompt an image")
    return np.array(
        [_shows(read_scene(image), parse(prompt)) for image, prompt in zip(images, prompts, strict=True)],
        dtype=np.float32,
    )


def read_scene(image: npt.NDArray[np.uint8]) -> list[SeenObject]:
    """Finds the coloured objects in one image, uint8 [H, W, 3], the largest first."""
    colour_of_pixel = _classify_pixels(image)
    seen: list[SeenObject] = []
    for index, colour in enumerate(COLOURS):
        mask = colour_of_pixel == index
        if mask.mean() >= _MIN_AREA:
            seen.extend(_find_objects(mask, colour))
    return sorted(seen, key=lambda item: -item.area)


def _classify_pixels(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """int64 [H, W]: index of each pixel's colour, or -1 for background.

    Mixing a colour with the background moves it towards the background along a line, so the
    direction from the background names the colour of blurred edges too.
    """
    offset = image.astype(np.float32) - np.array(BACKGROUND, dtype=np.float32)
    along: npt.NDArray[Any] = offset @ (_OFFSETS / _LENGTHS[:, None]).T
    best = along.argmax(axis=-1)
    coverage = np.take_along_axis(along, best[..., None], axis=-1)[..., 0] / _LENGTHS[best]
    return np.where(coverage >= _MIN_COVERAGE, best, -1)


def _find_objects(mask: npt.NDArray[np.bool_], colour: str) -> list[SeenObject]:
    height, width = mask.shape
    labels, _ = ndimage.label(mask)
    found = []
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        patch = labels[box] == label
        area = patch.sum() / mask.size
        if area >= _MIN_AREA:
            rows, columns = np.nonzero(patch)
            x = (columns.mean() + box[1].start + 0.5) / width
            y = (rows.mean() + box[0].start + 0.5) / height
            found.append(SeenObject(colour, _shape_of(patch), float(x), float(y), float(area)))
    return found


def _shape_of(patch: npt.NDArray[np.bool_]) -> str | None:
    """The shape that overlaps best (intersection over union) when stretched to the patch's box."""
    height, width = patch.shape
    if max(height, width) > _MAX_STRETCH * min(height, width):
        return None
    v = ((np.arange(height) + 0.5) / height)[:, None]
    u = ((np.arange(width) + 0.5) / width)[None, :]
    ideal = {
        "circle": (u - 0.5) ** 2 + (v - 0.5) ** 2 <= 0.25,
        "square": np.ones_like(patch),
        "triangle": np.abs(u - 0.5) <= v / 2,
    }
    fits = {shape: (patch & ideal[shape]).sum() / (patch | ideal[shape]).sum() for shape in SHAPES}
    best = max(fits, key=lambda shape: float(fits[shape]))
    return best if fits[best] >= _MIN_FIT else None


def _shows(seen: Sequence[SeenObject], wanted: Scene) -> bool:
    if {(item.colour, item.shape) for item in seen} != {(item.colour, item.shape) for item in wanted.objects}:
        return False
    if len(seen) != len(wanted.objects) or wanted.second is None:
        return len(seen) == len(wanted.objects)
    where = {item.colour: item for item in seen}
    first, second = where[wanted.first.colour], where[wanted.second.colour]
    right, down = second.x - first.x, second.y - first.y
    return down > abs(right) if wanted.relation == "above" else right > abs(down)
