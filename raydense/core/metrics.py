"""Named scalars to JSON lines."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


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
        """Bytes written so far, those kept included."""
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        self._file.close()
