"""What pictures look like, in three numbers that move when a reward is hacked: colour, detail, variety."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SIDE = 128  # pixels of a side that are looked at, evenly spaced: a picture of 512 x 512 takes a sixteenth of the time
GRID = 16  # cells a side, to which pictures are averaged before they are compared
LEVELS = 64  # of grey, for the entropy
LUMA = np.array([299, 587, 114])  # ITU-R BT.601, in thousandths


def image_statistics(images: NDArray[np.uint8]) -> dict[str, float]:
    """Of the pictures of one group, uint8 [R, h, w, 3].

    saturation: mean over pixels of (max − min) / max over the channels (HSV's S), 0 … 1.
    entropy: Shannon's, of each picture's histogram of grey levels, mean over the pictures; bits, 0 … 6.
    similarity: mean Pearson correlation of two of the pictures, averaged to 16 x 16 cells a channel; −1 … 1, and 1
        where all are alike. 0 for a single picture.
    """
    step = max(1, max(images.shape[1:3]) // SIDE)
    images = images[:, ::step, ::step]
    grey = (images @ LUMA) // 1000
    return {
        "saturation": _saturation(images),
        "entropy": float(np.mean([_entropy(picture) for picture in grey])),
        "similarity": _similarity(images),
    }


def _saturation(images: NDArray[np.uint8]) -> float:
    high, low = images.max(axis=-1).astype(np.float64), images.min(axis=-1)
    return float(np.mean((high - low) / np.maximum(high, 1)))


def _entropy(grey: NDArray[np.int64]) -> float:
    counts = np.bincount(grey.ravel() * LEVELS // 256, minlength=LEVELS)
    shares = counts[counts > 0] / grey.size
    return float(-(shares * np.log2(shares)).sum())


def _similarity(images: NDArray[np.uint8]) -> float:
    count = len(images)
    if count < 2:
        return 0.0
    cells = np.stack([_shrink(image) for image in images])
    centred = cells - cells.mean(axis=1, keepdims=True)
    lengths = np.sqrt((centred**2).sum(axis=1, keepdims=True))
    flat = np.full_like(centred, cells.shape[1] ** -0.5)  # plain pictures, which correlate with nothing, are alike
    unit = np.where(lengths > 0, centred / np.where(lengths > 0, lengths, 1), flat)
    together = (unit.sum(axis=0) ** 2).sum()  # |Σ u|² = R + Σ over ordered pairs
    return float((together - count) / (count * (count - 1)))


def _shrink(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Means of GRID x GRID cells, float64 [cells · 3]; fewer cells where a picture has fewer pixels."""
    rows = np.linspace(0, image.shape[0], min(GRID, image.shape[0]) + 1).astype(int)[:-1]
    columns = np.linspace(0, image.shape[1], min(GRID, image.shape[1]) + 1).astype(int)[:-1]
    sums = np.add.reduceat(np.add.reduceat(image.astype(np.float64), rows, axis=0), columns, axis=1)
    heights = np.diff([*rows, image.shape[0]])[:, None, None]
    widths = np.diff([*columns, image.shape[1]])[None, :, None]
    return np.asarray(sums / (heights * widths)).ravel()
