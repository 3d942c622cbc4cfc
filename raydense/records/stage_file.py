"""A small JSON file in the run directory with an entry a stage, which a run that continues reads again."""

from __future__ import annotations

import json
from pathlib import Path

from raydense.files.durable import write_text

Entry = dict[str, dict[str, float]]


class StageFile:
    """Entries by stage; each is on disk when it is set. Floats come back exactly.

    An entry is a function of the run up to its stage: writing it again, after a cut, writes the same.
    Args: path: None keeps them in memory, for what is no run.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._entries: dict[str, Entry] = json.loads(path.read_text("utf-8")) if path and path.is_file() else {}

    def __contains__(self, stage: int) -> bool:
        return str(stage) in self._entries

    def __getitem__(self, stage: int) -> Entry:
        return self._entries[str(stage)]

    def __setitem__(self, stage: int, entry: Entry) -> None:
        self._entries[str(stage)] = entry
        if self.path is not None:
            write_text(self.path, json.dumps(self._entries, indent=1) + "\n")
