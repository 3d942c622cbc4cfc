"""Named scalars to JSON lines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class JsonLines:
    """Appends one JSON object a row, flushed at once; floats are written exactly."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(row, ensure_ascii=False, allow_nan=True) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
