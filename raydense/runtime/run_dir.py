"""The run directory: what is where, and that no run ever overwrites another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from raydense.config import Config, ConfigError


def default_out(config: Config) -> Path:
    """runs/<name>-<time>, under the current directory."""
    return Path("runs") / f"{config.name}-{datetime.now():%Y%m%d-%H%M%S}"


class RunDirectory:
    """Paths of one run.

    Raises: ConfigError if the directory holds something already, or cannot be written.
    """

    def __init__(self, root: Path, config: Config) -> None:
        self.root = root
        try:
            if root.exists() and (not root.is_dir() or any(root.iterdir())):
                raise ConfigError(f"--out={root} is not empty and is never overwritten; give a new directory")
            for directory in (root, self.images, self.checkpoints, self.lora):
                directory.mkdir(parents=True, exist_ok=True)
            (root / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--out={root} cannot be written ({error.strerror}); give another directory") from None

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def lora(self) -> Path:
        return self.root / "lora"

    def checkpoint(self, stage: int) -> Path:
        """Of the boundary after `stage` (counted from 0)."""
        return self.checkpoints / f"stage-{stage + 1:04d}"

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        self._write_json("summary.json", summary)

    def write_scores(self, scores: Mapping[str, Any]) -> None:
        """Every single score behind the summary's means."""
        self._write_json("scores.json", scores)

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        text = json.dumps(content, indent=1, ensure_ascii=False)
        (self.root / name).write_text(text + "\n", encoding="utf-8")
