"""What a run directory says, finished, being written or cut anywhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydense.config import Config, load_run_config
from raydense.files.durable import json_if_there
from raydense.records.metrics import read_rows
from raydense.records.run_dir import RunDirectory
from raydense.records.status import read_status

Row = dict[str, Any]


@dataclass(frozen=True)
class Curve:
    """A metric over gradient steps, with the ends of its 95 % interval where the rows have them."""

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]
    ends: tuple[tuple[float, float] | None, ...]


@dataclass(frozen=True)
class RunData:
    """A run's files, read once."""

    root: Path
    config: Config
    status: Mapping[str, Any]
    metrics: Sequence[Row]
    telemetry: Sequence[Row]
    scores: Mapping[str, Any] | None  # of a finished run: by prompt set, prompt and scorer
    failure: str | None

    def rows(self, kind: str) -> list[Row]:
        """Of metrics.jsonl."""
        return [row for row in self.metrics if row["kind"] == kind]

    def events(self, kind: str) -> list[Row]:
        """Of telemetry.jsonl."""
        return [row for row in self.telemetry if row["kind"] == kind]

    @property
    def judges(self) -> tuple[str, ...]:
        """The scorer that is trained on, then everyone else who scored."""
        prefix = "reward/monitor/"
        monitors = {key: None for row in self.rows("stage") for key in row if key.startswith(prefix)}
        return (self.config.reward.scorer.name, *(key.removeprefix(prefix) for key in monitors))

    @property
    def failed_monitors(self) -> dict[str, str]:
        """Why a monitor first failed, by its name."""
        return {row["judge"]: row["failure"] for row in reversed(self.events("monitor"))}

    @property
    def steps_taken(self) -> int:
        return int(self.status["progress"]["steps"])

    def curve(self, kind: str, name: str) -> Curve:
        """A metric's values in the rows that have it."""
        found = [row for row in self.rows(kind) if name in row]
        return Curve(
            name,
            tuple(row["step"] for row in found),
            tuple(row[name] for row in found),
            tuple(_ends(row, name) for row in found),
        )

    def evaluations(self, judge: str) -> list[Curve]:
        """A judge's scores of fixed prompts with fixed seeds, a curve a prompt set."""
        ending = f"/{judge}"
        keys = [key for row in self.rows("evaluation") for key in row if key.startswith("evaluate/")]
        names = dict.fromkeys(key for key in keys if key.endswith(ending) and key.count("/") >= 2)
        return [self.curve("evaluation", name) for name in names]

    def phase_seconds(self) -> dict[int, dict[str, float]]:
        """Wall time by stage and phase, over all of the run's processes."""
        seconds: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for row in self.events("phase"):
            for key, value in row.items():
                if key.startswith("phase/"):
                    seconds[row["stage"]][key.removeprefix("phase/").removesuffix("_s")] += value
        return seconds


def read_run(root: Path) -> RunData:
    """Raises: ConfigError if `root` holds no run."""
    status = read_status(root)
    run_dir = RunDirectory(root)
    return RunData(
        root,
        load_run_config(run_dir.config_file),
        status,
        list(read_rows(run_dir.metrics)),
        list(read_rows(run_dir.telemetry)),
        json_if_there(root / "scores.json"),
        run_dir.read_failure(),
    )


def _ends(row: Row, name: str) -> tuple[float, float] | None:
    low, high = row.get("intervals", {}).get(name, (None, None))
    return None if low is None else (low, high)
