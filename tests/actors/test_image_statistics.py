"""Saturation, entropy and similarity of pictures whose values are known."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest

from actors.image_statistics import image_statistics


def plain(*colours: tuple[int, int, int], size: int = 32) -> np.ndarray:
    return np.stack([np.full((size, size, 3), colour, np.uint8) for colour in colours])


def noise(count: int, seed: int = 0, size: int = 48) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_saturation_is_that_of_hsv() -> None:
    assert image_statistics(plain((200, 200, 200), (0, 0, 0)))["saturation"] == 0
    assert image_statistics(plain((255, 0, 0), (0, 7, 7)))["saturation"] == 1
    images = noise(2, size=8)
    slow = [colorsys.rgb_to_hsv(*(pixel / 255))[1] for pixel in images.reshape(-1, 3)]
    assert image_statistics(images)["saturation"] == pytest.approx(np.mean(slow))


def test_entropy_counts_grey_levels() -> None:
    assert image_statistics(plain((9, 9, 9), (200, 0, 0)))["entropy"] == 0
    halves = plain((0, 0, 0))
    halves[:, :16] = 255
    assert image_statistics(halves)["entropy"] == pytest.approx(1)
    ramp = np.repeat(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), 3, axis=-1)
    assert image_statistics(ramp)["entropy"] == pytest.approx(6)  # 64 levels, equally often


def test_similarity_is_the_mean_correlation_of_pairs() -> None:
    images = noise(4)
    small = images.reshape(4, 16, 3, 16, 3, 3).mean(axis=(2, 4)).reshape(4, -1)
    pairs = np.corrcoef(small)[np.triu_indices(4, 1)]
    assert image_statistics(images)["similarity"] == pytest.approx(pairs.mean())
    assert image_statistics(np.repeat(images[:1], 3, axis=0))["similarity"] == pytest.approx(1)
    assert image_statistics(np.stack([images[0], 255 - images[0]]))["similarity"] == pytest.approx(-1)
    assert image_statistics(images[:1])["similarity"] == 0


def test_plain_pictures_are_alike_and_like_no_other() -> None:
    assert image_statistics(plain((255, 0, 0), (255, 0, 0)))["similarity"] == pytest.approx(1)
    assert image_statistics(plain((9, 9, 9), (200, 200, 200)))["similarity"] == pytest.approx(1)
    mixed = np.concatenate([plain((9, 9, 9), size=48), noise(1)])
    assert image_statistics(mixed)["similarity"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("size", [(5, 7), (16, 16), (50, 33)])
def test_any_size_of_picture(size: tuple[int, int]) -> None:
    images = np.random.default_rng(1).integers(0, 256, (3, *size, 3), dtype=np.uint8)
    assert all(np.isfinite(value) for value in image_statistics(images).values())
    assert image_statistics(images)["similarity"] < 1


def test_of_a_large_picture_evenly_spaced_pixels_are_enough() -> None:
    draws = np.random.default_rng(2)
    coarse = draws.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    large = coarse.repeat(16, axis=1).repeat(16, axis=2)  # 512 x 512
    assert image_statistics(large) == pytest.approx(image_statistics(large[:, ::2, ::2]))
    assert image_statistics(large) == pytest.approx(image_statistics(coarse), rel=1e-9)
