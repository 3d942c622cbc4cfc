"""One small picture of every judged prompt, kept so that a report can show which prompts gained and which lost."""

from __future__ import annotations

import io
import zipfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raydense.files.durable import replacing

EDGE = 160  # longest edge, pixels


def encode(image: NDArray[np.uint8]) -> bytes:
    """uint8 [h, w, 3] → a PNG file with every pixel where it fits into EDGE, else a smaller JPEG file."""
    picture = Image.fromarray(image)
    file = io.BytesIO()
    if max(picture.size) <= EDGE:
        picture.save(file, format="PNG")
    else:
        picture.thumbnail((EDGE, EDGE), Image.Resampling.LANCZOS)
        picture.save(file, format="JPEG", quality=85)
    return file.getvalue()


def is_png(picture: bytes) -> bool:
    return picture.startswith(b"\x89PNG")


def save_thumbnails(path: Path, pictures: Mapping[str, Sequence[bytes]]) -> None:
    """A zip of files `set/number`, by prompt set in the order of its prompts; the same pictures give the same bytes."""
    with replacing(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for name, files in pictures.items():
            for number, file in enumerate(files):
                ending = "png" if is_png(file) else "jpg"
                archive.writestr(zipfile.ZipInfo(f"{name}/{number:05d}.{ending}"), file)


def read_thumbnails(path: Path) -> dict[str, list[bytes]]:
    """What `save_thumbnails` wrote."""
    pictures: dict[str, list[bytes]] = defaultdict(list)
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            pictures[member.rpartition("/")[0]].append(archive.read(member))
    return dict(pictures)
