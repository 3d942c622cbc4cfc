"""Image grids: their size follows from the pictures, and every picture is where it belongs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raydense.records.grids import CELL, FRAME, GAP, LABEL, fitting, read_grid, save_grid


def flat_pictures(rows: int, columns: int, edge: int) -> np.ndarray:
    """Each picture is one colour that says its row and column."""
    images = np.zeros((rows, columns, edge, edge, 3), np.uint8)
    images[..., 0] = 10 * np.arange(1, rows + 1)[:, None, None, None]
    images[..., 1] = 10 * np.arange(1, columns + 1)[None, :, None, None]
    return images


@pytest.mark.parametrize(("edge", "drawn"), [(16, 128), (100, 200), (128, 128), (512, 512)])
def test_small_pictures_are_magnified_by_a_whole_number(tmp_path: Path, edge: int, drawn: int) -> None:
    assert drawn >= CELL
    save_grid(tmp_path / "grid.png", flat_pictures(2, 3, edge), ["a cat", "a dog"], ["base model"])
    with Image.open(tmp_path / "grid.png") as sheet:
        assert sheet.size == (3 * (drawn + GAP) + GAP, LABEL + 2 * (drawn + GAP + LABEL))


@pytest.mark.parametrize("shape", [(16, 24), (24, 16), (100, 200)])
def test_portraits_and_landscapes_are_read_as_they_were_drawn(tmp_path: Path, shape: tuple[int, int]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 4, *shape, 3), dtype=np.uint8)
    save_grid(tmp_path / "grid.png", images, ["a cat", "a dog"], ["base model", "tuned"])
    assert np.array_equal(read_grid(tmp_path / "grid.png").images, images)


def test_a_frame_lies_around_its_picture_and_covers_none(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 100, (2, 3, 16, 16, 3), dtype=np.uint8)
    save_grid(tmp_path / "grid.png", images, ["a cat", "a dog"], ["a", "b", "c"], framed=[2, 0])
    assert np.array_equal(read_grid(tmp_path / "grid.png").images, images)
    with Image.open(tmp_path / "grid.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    red = (pixels[..., 0] > 200) & (pixels[..., 1] < 50)
    assert red.sum() == 2 * ((128 + 2 * FRAME) ** 2 - 128**2)
    rows, columns = np.nonzero(red[: LABEL + 128 + GAP + LABEL])
    assert (rows.min(), rows.max()) == (2 * LABEL - FRAME, 2 * LABEL + 128 + FRAME - 1)
    assert columns.max() == pixels.shape[1] - GAP + FRAME - 1
    assert np.nonzero(red[LABEL + 128 + GAP + LABEL :])[1].min() == GAP - FRAME


def test_two_blocks_have_a_wider_gap_between_them(tmp_path: Path) -> None:
    save_grid(tmp_path / "grid.png", flat_pictures(1, 4, 128), ["a cat"], ["base model", "after stage 2"])
    with Image.open(tmp_path / "grid.png") as sheet:
        assert sheet.width == 4 * (128 + GAP) + GAP + 4 * GAP


def test_every_picture_is_drawn_once_in_its_row_and_column(tmp_path: Path) -> None:
    save_grid(tmp_path / "grid.png", flat_pictures(2, 4, 128), ["a cat", "a dog"], ["base model", "tuned"])
    with Image.open(tmp_path / "grid.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    centres = {}
    for row in (10, 20):
        for column in (10, 20, 30, 40):
            found = np.argwhere((pixels == (row, column, 0)).all(-1))
            assert len(found) == 128 * 128
            centres[row, column] = found.mean(axis=0)
    for (row, column), (y, x) in centres.items():
        assert y == centres[row, 10][0]
        assert x == centres[10, column][1]
    assert centres[10, 10][0] < centres[20, 10][0]
    assert [centres[10, c][1] for c in (10, 20, 30, 40)] == sorted(centres[10, c][1] for c in (10, 20, 30, 40))


@pytest.mark.parametrize("edge", [16, 100, 200])
def test_a_grid_can_be_read_back_picture_by_picture(tmp_path: Path, edge: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 4, edge, edge, 3), dtype=np.uint8)
    save_grid(tmp_path / "grid.png", images, ["a cat", "ein Käfer"], ["base model", "tuned"])
    grid = read_grid(tmp_path / "grid.png")
    np.testing.assert_array_equal(grid.images, images)
    assert (grid.prompts, grid.titles) == (("a cat", "ein Käfer"), ("base model", "tuned"))


def test_a_picture_that_is_no_grid_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "picture.png")
    with pytest.raises(ValueError, match="is no image grid"):
        read_grid(tmp_path / "picture.png")


@pytest.mark.parametrize(
    ("name", "written", "width"),
    [
        ("a.png", "PNG", 128), ("a.PNG", "PNG", 128), ("a.jpg", "JPEG", 128), ("a.jpeg", "JPEG", 128),
        ("a.webp", "WEBP", 128), ("a.JPG", "JPEG", 128), ("a b.v1.webp", "WEBP", 128), ("a.png", "PNG", 70_000),
        ("a.webp", None, 17_000), ("a.jpg", None, 66_000),  # more than the format can hold
    ],
)  # fmt: skip
def test_a_grid_is_written_as_its_name_says(tmp_path: Path, name: str, written: str | None, width: int) -> None:
    images = np.full((1, 1, 128, width, 3), 200, np.uint8)
    height, width, _ = save_grid(tmp_path / name, images, ["a cat"], ["base"]).shape
    file = fitting(tmp_path / name, width, height)
    assert list(tmp_path.iterdir()) == [file]
    assert file.name == (name if written else f"{name}.png")
    with Image.open(file) as picture:
        assert picture.format == (written or "PNG")
        assert picture.size == (width, height)
        assert np.abs(np.asarray(picture.crop((0, 50, 128, 60)), dtype=int)[:, 8:] - 200).max() <= 3
