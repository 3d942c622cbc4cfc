"""The judge agrees with what was drawn and with nothing else."""

from __future__ import annotations

import time

import numpy as np
import pytest

from raydense.tiny.oracle import read_scene, score
from raydense.tiny.scenes import BACKGROUND, PALETTE, pair_captions, parse, render, render_batch, single_captions

CAPTIONS = pair_captions() + single_captions()
SWAPS = {
    "colours": "a blue circle above a red square",
    "shapes": "a red square above a blue circle",
    "order": "a blue square above a red circle",
    "relation": "a red circle left of a blue square",
    "colour": "a green circle above a blue square",
    "count": "a red circle",
}


def test_real_renderings_are_right() -> None:
    images = render_batch(CAPTIONS, range(len(CAPTIONS)))
    assert score(images, CAPTIONS).mean() >= 0.99


def test_real_renderings_of_other_captions_are_wrong() -> None:
    images = render_batch(CAPTIONS, range(len(CAPTIONS)))
    assert score(images, CAPTIONS[1:] + CAPTIONS[:1]).mean() == 0.0


@pytest.mark.parametrize("wrong", SWAPS.values(), ids=SWAPS.keys())
def test_near_misses_are_wrong(wrong: str) -> None:
    image = render(parse("a red circle above a blue square"), 3)
    scores = score(np.stack([image, image]), ["a red circle above a blue square", wrong])
    assert scores.tolist() == [1.0, 0.0] and scores.dtype == np.float32


def test_a_scene_is_read_off_the_pixels() -> None:
    seen = read_scene(render(parse("a red circle left of a blue square"), 5))
    assert {(item.colour, item.shape) for item in seen} == {("red", "circle"), ("blue", "square")}
    left = min(seen, key=lambda item: item.x)
    assert left.colour == "red" and 0.2 < left.x < 0.35 and 0.3 < left.y < 0.7 and 0.05 < left.area < 0.15


def test_an_extra_object_is_wrong() -> None:
    image = render(parse("a red circle"), 5).copy()
    image[:10, :10] = PALETTE["green"]
    assert score(image[None], ["a red circle"]).tolist() == [0.0]


def test_a_shapeless_patch_is_no_shape() -> None:
    image = np.full((64, 64, 3), BACKGROUND, dtype=np.uint8)
    image[10:14, 5:60] = PALETTE["red"]
    assert [(item.colour, item.shape) for item in read_scene(image)] == [("red", None)]


def test_an_empty_image_is_wrong() -> None:
    image = np.full((1, 64, 64, 3), BACKGROUND, dtype=np.uint8)
    assert score(image, ["a red circle"]).tolist() == [0.0]


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="got 2 images and 1 prompts"):
        score(np.zeros((2, 64, 64, 3), dtype=np.uint8), ["a red circle"])


def test_an_image_takes_under_two_milliseconds() -> None:
    images = render_batch(CAPTIONS[:200], range(200))
    started = time.process_time()
    score(images, CAPTIONS[:200])
    assert (time.process_time() - started) / 200 < 0.002
