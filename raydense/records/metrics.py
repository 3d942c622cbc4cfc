"""Named scalars and pictures of a run: who takes them, and JSON lines of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class MetricSink(Protocol):
    """Takes a run's metrics somewhere; what it does never comes back into the run."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Named numbers (`reward/mean`, `phase/sampling_s`, …) after `step` gradient steps of the run."""
        ...

    def image(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        """A picture, uint8 [h, w, 3]."""
        ...

    def close(self) -> None: ...


class JsonLines:
    """Appends one JSON object a row, flushed at once; floats are written exactly.

    Args:
        keep_bytes: of an existing file; what lies behind was written after the checkpoint that a run continues from.
    """

    def __init__(self, path: Path, keep_bytes: int | None = None) -> None:
        self._file = path.open("a", encoding="utf-8")
        if keep_bytes is not None:
            self._file.truncate(keep_bytes)

    def write(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(row, ensure_ascii=False, allow_nan=True) + "\n")
        self._file.flush()

    @property
    def size(self) -> int:
        """Bytes that are on disk by now, those kept included."""
        os.fsync(self._file.fileno())  # else a checkpoint could outlive, in a power cut, the rows that it counts
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        self._file.close()


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The whole rows of a JSON-lines file, which may be missing or being written: then the last is half a row."""
    if not path.is_file():
        return
    for line in path.read_text("utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)
