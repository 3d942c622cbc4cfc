"""`raydense compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from raydense.commands.common import AsJson, Debug, explained
from raydense.config import ConfigError
from raydense.core.terminal import open_console

EXAMPLE = "Example: `raydense compare runs/seven runs/eight`"


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Their directories, finished or not.")],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Shows in what runs differ: their settings, their scores side by side with intervals, where they stand."""
    with explained(debug):
        if len(runs) < 2:
            raise ConfigError(f"one run, {runs[0]}, cannot be compared; give two or more")

        from raydense.evaluation.compare import differences, read_runs, score_rows, sheets

        found = read_runs(runs)
        if as_json:
            values = {key: list(map(str, of)) for key, of in differences(found).items()}
            rows = [row.as_dict() for row in score_rows(found)]
            typer.echo(json.dumps({"runs": [run.name for run in found], "settings": values, "scores": rows}))
            return
        console = open_console()
        for sheet in sheets(found):
            console.print(sheet.rich())
