"""The small pictures of judged prompts: exact where they are small already, and the same bytes every time."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from raydense.config import Config
from raydense.core.types import Rendered, RenderUnit
from raydense.records.thumbnails import EDGE, encode, read_thumbnails, save_thumbnails
from raydense.training.judging import judge_prompts


def picture(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


def test_a_small_picture_keeps_every_pixel_and_a_large_one_its_shape() -> None:
    small = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    np.testing.assert_array_equal(picture(encode(small)), small)
    large = np.full((512, 256, 3), (200, 100, 50), dtype=np.uint8)
    shrunk = picture(encode(large))
    assert shrunk.shape == (EDGE, EDGE // 2, 3)
    assert np.abs(shrunk.astype(int) - (200, 100, 50)).max() <= 3
    assert len(encode(large)) < 5000


def test_what_is_saved_is_read_back_in_order_and_the_file_is_a_function_of_it(tmp_path: Path) -> None:
    pictures = {name: [encode(np.full((4, 4, 3), i, np.uint8)) for i in range(12)] for name in ("train", "concept art")}
    save_thumbnails(tmp_path / "one.zip", pictures)
    save_thumbnails(tmp_path / "two.zip", pictures)
    assert read_thumbnails(tmp_path / "one.zip") == pictures
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


class NumberingFleet:
    """A `Fleet` whose pictures show their seed."""

    def render(self, units: list[RenderUnit]) -> list[Rendered]:
        return [
            Rendered(np.stack([np.full((2, 2, 3), s, np.uint8) for s in u.seeds]), {"clip": np.zeros(len(u.seeds))})
            for u in units
        ]


def test_judging_keeps_the_first_picture_of_each_prompt(small_config: Callable[..., Config]) -> None:
    """Also where a prompt's pictures are spread over two work units: 32 are drawn at once, 3 a prompt."""
    prompts = [f"prompt {i}" for i in range(25)]
    judgement = judge_prompts({"many": prompts}, 3, NumberingFleet(), 0)
    assert [int(picture(file)[0, 0, 0]) for file in judgement.pictures["many"]] == [3 * i for i in range(25)]
