"""Labelled image grids as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

CELL = 128  # smallest edge of a picture in a grid, pixels; smaller pictures are magnified
GAP, LABEL = 4, 22


def save_grid(
    path: Path, images: NDArray[np.uint8], prompts: Sequence[str], titles: Sequence[str]
) -> NDArray[np.uint8]:
    """Draws rows of pictures, each row under its prompt, and blocks of columns under their titles.

    Args:
        images: uint8 [rows, columns, h, w, 3]; the columns are split evenly over the titles.
        prompts: one a row. titles: one a block of columns.
    Returns: the sheet, uint8 [height, width, 3].
    """
    rows, columns, height, width, _ = images.shape
    scale = max(1, -(-CELL // min(height, width)))
    cell_w, cell_h = width * scale + GAP, height * scale + GAP
    block_gap = 4 * GAP
    sheet = Image.new(
        "RGB",
        (columns * cell_w + GAP + (len(titles) - 1) * block_gap, LABEL + rows * (cell_h + LABEL)),
        "white",
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    per_block = columns // len(titles)
    for block, title in enumerate(titles):
        draw.text((GAP + block * (per_block * cell_w + block_gap), 3), title, fill="black", font=font)
    for row in range(rows):
        top = LABEL + row * (cell_h + LABEL)
        draw.text((GAP, top + 3), prompts[row], fill="#444444", font=font)
        for column in range(columns):
            picture = Image.fromarray(images[row, column])
            picture = picture.resize((width * scale, height * scale), Image.Resampling.NEAREST)
            left = GAP + column * cell_w + (column // per_block) * block_gap
            sheet.paste(picture, (left, top + LABEL))
    sheet.save(path)
    return np.asarray(sheet)
