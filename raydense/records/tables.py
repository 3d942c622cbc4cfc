"""Tables for people, for a page and for a spreadsheet, from the same cells."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from raydense.core.statistics import Interval
from raydense.files.durable import write_text


@dataclass(frozen=True)
class Sheet:
    """Cells as text; the first `names` columns are names, the others numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    names: int = 1

    def rich(self) -> Table:
        table = Table(title=self.title, title_justify="left")
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="left" if index < self.names else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        marks = ["---"] * self.names + ["---:"] * (len(self.columns) - self.names)
        lines = [self.columns, marks, *self.rows]
        body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return f"### {self.title}\n\n{body}\n"


def shown(interval: Interval, sign: str = "", digits: int = 4) -> str:
    """`0.8711 [0.8502, 0.8920]`; without bounds where there are none, and a dash where nothing was scored."""
    if math.isnan(interval.mean):
        return "–"
    number = f"{sign}.{digits}f"
    if math.isnan(interval.low):
        return f"{interval.mean:{number}}"
    return f"{interval.mean:{number}} [{interval.low:{number}}, {interval.high:{number}}]"


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One line a row under the keys of the first; all have the same."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
