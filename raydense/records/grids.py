"""Labelled image grids; a PNG file says what is in it, so that single pictures can be had back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from raydense.files.durable import replacing

CELL = 128  # smallest edge of a picture in a grid, pixels; smaller pictures are magnified
GAP, LABEL = 4, 22
FRAME = 3  # lies in the gap: no pixel of a picture is lost
TEXT = "raydense-grid"  # the PNG text chunk with prompts, titles and layout


class Format(NamedTuple):
    """Pillow's name of a format, how it writes one, and the most pixels an edge of it may have."""

    name: str
    options: Mapping[str, Any] = {}
    longest: float = math.inf


JPEG = Format("JPEG", {"quality": 95, "subsampling": 0}, 65_500)
FORMATS = {".png": Format("PNG"), ".jpg": JPEG, ".jpeg": JPEG, ".webp": Format("WEBP", {"lossless": True}, 16_383)}


@dataclass(frozen=True)
class SheetLayout:
    """Where the pictures lie: rows, columns in blocks with a title each, a picture's shown size, its magnification."""

    rows: int
    columns: int
    blocks: int
    height: int
    width: int
    scale: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the sheet."""
        width = self.columns * (self.width + GAP) + GAP + (self.blocks - 1) * 4 * GAP
        return width, LABEL + self.rows * (self.height + GAP + LABEL)

    def left(self, column: int) -> int:
        return GAP + column * (self.width + GAP) + column // (self.columns // self.blocks) * 4 * GAP

    def top(self, row: int) -> int:
        """Of the row's prompt; its pictures lie LABEL lower."""
        return LABEL + row * (self.height + GAP + LABEL)


@dataclass(frozen=True)
class Grid:
    """What a grid's file holds."""

    images: NDArray[np.uint8]  # [rows, columns, h, w, 3]
    prompts: tuple[str, ...]  # one a row
    titles: tuple[str, ...]  # one a block of columns


def save_grid(
    path: Path,
    images: NDArray[np.uint8],
    prompts: Sequence[str],
    titles: Sequence[str],
    framed: Sequence[int] = (),
) -> NDArray[np.uint8]:
    """Draws rows of pictures, each row under its prompt, and blocks of columns under their titles.

    Args:
        path: whose ending is one of FORMATS; the file is at `fitting` of it.
        images: uint8 [rows, columns, h, w, 3]; the columns are split evenly over the titles.
        prompts: one a row. titles: one a block of columns.
        framed: of each row the column whose picture has a frame; empty: none.
    Returns: the sheet, uint8 [height, width, 3].
    """
    rows, columns, height, width, _ = images.shape
    scale = max(1, -(-CELL // min(height, width)))
    layout = SheetLayout(rows, columns, len(titles), height * scale, width * scale, scale)
    sheet = Image.new("RGB", layout.size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    for block, title in enumerate(titles):
        draw.text((layout.left(block * columns // len(titles)), 3), title, fill="black", font=font)
    for row in range(rows):
        draw.text((GAP, layout.top(row) + 3), prompts[row], fill="#444444", font=font)
        for column in range(columns):
            picture = Image.fromarray(images[row, column])
            picture = picture.resize((layout.width, layout.height), Image.Resampling.NEAREST)
            sheet.paste(picture, (layout.left(column), layout.top(row) + LABEL))
    for row, column in enumerate(framed):
        left, top = layout.left(column) - FRAME, layout.top(row) + LABEL - FRAME
        corner = left + layout.width + 2 * FRAME - 1, top + layout.height + 2 * FRAME - 1
        draw.rectangle((left, top, *corner), outline="#d62728", width=FRAME)
    path = fitting(path, *layout.size)
    about, form = PngInfo(), FORMATS[path.suffix.lower()]
    facts = {"prompts": list(prompts), "titles": list(titles), "layout": layout.__dict__}
    about.add_itxt(TEXT, json.dumps(facts, ensure_ascii=False))
    with replacing(path) as partial:
        sheet.save(partial, format=form.name, **form.options, **({"pnginfo": about} if form.name == "PNG" else {}))
    return np.asarray(sheet)


def fitting(path: Path, width: int, height: int) -> Path:
    """The path itself, or with .png behind it where its format cannot hold that many pixels: a drawing is not lost."""
    too_large = max(width, height) > FORMATS[path.suffix.lower()].longest
    return path.with_name(f"{path.name}.png") if too_large else path


def read_grid(path: Path) -> Grid:
    """The pictures of a grid in their own size. Raises: ValueError if the file is no grid."""
    with Image.open(path) as sheet:
        text = sheet.info.get(TEXT)
        if text is None:
            raise ValueError(f"{path} is no image grid: it has no text {TEXT!r}")
        pixels = np.asarray(sheet.convert("RGB"))
    facts = json.loads(text)
    layout = SheetLayout(**facts["layout"])

    def cut(row: int, column: int) -> NDArray[np.uint8]:
        top, left = layout.top(row) + LABEL, layout.left(column)
        return pixels[top : top + layout.height : layout.scale, left : left + layout.width : layout.scale]

    images = [[cut(row, column) for column in range(layout.columns)] for row in range(layout.rows)]
    return Grid(np.array(images), tuple(facts["prompts"]), tuple(facts["titles"]))
