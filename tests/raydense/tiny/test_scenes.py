"""The caption grammar, the renderer and the split."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pytest

from raydense.tiny.scenes import (
    BACKGROUND,
    PALETTE,
    Scene,
    SceneObject,
    pair_captions,
    parse,
    render,
    render_batch,
    single_captions,
    split_captions,
    training_captions,
)


def test_there_are_540_two_object_and_18_one_object_captions() -> None:
    assert len(set(pair_captions())) == 540
    assert len(set(single_captions())) == 18


def test_every_caption_reads_back_as_itself() -> None:
    for caption in pair_captions() + single_captions():
        assert parse(caption).caption == caption


def test_a_caption_is_read_into_its_parts() -> None:
    scene = parse("  An orange circle  LEFT OF a blue square. ")
    assert scene == Scene(SceneObject("orange", "circle"), "left of", SceneObject("blue", "square"))


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("a dog", "is not a scene"),
        ("a pink circle", "COLOUR in red, orange"),
        ("a red circle under a blue square", r"above\|left of"),
        ("a red circle above a red square", "two different colours"),
    ],
)
def test_other_captions_are_refused_with_the_reason(caption: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(caption)


def test_the_split_is_486_to_54_and_disjoint() -> None:
    train, unseen = split_captions()
    assert (len(train), len(unseen)) == (486, 54)
    assert set(train) | set(unseen) == set(pair_captions())
    assert not set(training_captions()) & set(unseen)


def test_every_object_occurs_in_training() -> None:
    seen = {item for caption in split_captions()[0] for item in parse(caption).objects}
    assert len(seen) == 18


@pytest.mark.parametrize(("name", "index"), [("train", 0), ("unseen", 1)])
def test_the_prompt_files_hold_the_split(name: str, index: int) -> None:
    text = (files("raydense.tiny") / "prompts" / f"{name}.txt").read_text()
    assert tuple(text.splitlines()) == split_captions()[index]


def test_rendering_depends_on_the_seed_alone() -> None:
    scene = parse("a red circle above a blue square")
    assert np.array_equal(render(scene, 7), render(scene, 7))
    assert not np.array_equal(render(scene, 7), render(scene, 8))


def test_a_rendering_has_the_background_and_both_colours() -> None:
    image = render(parse("a red circle above a blue square"), 0)
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8
    assert tuple(image[0, 0]) == BACKGROUND
    red, blue = (np.argwhere((image == PALETTE[colour]).all(axis=-1)) for colour in ("red", "blue"))
    assert len(red) > 150 and len(blue) > 150
    assert red[:, 0].max() < blue[:, 0].min()


def test_objects_stay_inside_and_do_not_overlap() -> None:
    captions = ["a red triangle left of a blue triangle"] * 100 + ["a red triangle above a blue triangle"] * 100
    for image in render_batch(captions, range(200)):
        assert (image[[0, -1]] == BACKGROUND).all() and (image[:, [0, -1]] == BACKGROUND).all()
        areas = [(image == PALETTE[colour]).all(axis=-1).sum() for colour in ("red", "blue")]
        assert min(areas) > 120
