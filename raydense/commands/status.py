"""`raydense status`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from raydense.commands.common import AsJson, Debug, explained
from raydense.core.terminal import open_console

EXAMPLE = "Example: `raydense status runs/seven`"


def status(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="Its directory (default: the latest).")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Shows what a run does: stage, units, rewards, fleet, ledger, last checkpoint."""
    from raydense.records.status import latest_run, read_status, show_status

    with explained(debug):
        found = read_status(run or latest_run())
        if as_json:
            typer.echo(json.dumps(found))
        else:
            show_status(found, open_console())
