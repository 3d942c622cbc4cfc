"""`raydense report`."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Annotated

import typer

from raydense.commands.common import Debug, explained

EXAMPLE = "Example: `raydense report runs/seven`"


def report(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="Its directory (default: the latest).")] = None,
    out: Annotated[Path | None, typer.Option(help="The HTML file (default: RUN/report.html).")] = None,
    debug: Debug = False,
) -> None:
    """Writes a run as one HTML file: curves, pictures, gains by prompt, times, faults. Works while it runs, too."""
    with explained(debug):
        gc.disable()  # looking through libraries and figures for garbage takes a tenth of this command's time
        try:
            from raydense.records.status import latest_run
            from raydense.report.page import write_report

            file = write_report(run or latest_run(), out)
        finally:
            gc.enable()
        typer.echo(f"{file}   ({file.stat().st_size / 1e6:.1f} MB, for any browser, no network needed)")
