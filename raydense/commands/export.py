"""`raydense export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raydense.commands.common import Debug, explained

EXAMPLE = "Example: `raydense export runs/seven --to seven-lora && cd seven-lora && python example.py`"


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Its directory.")],
    to: Annotated[Path, typer.Option(metavar="DIR", help="A new directory.")],
    debug: Debug = False,
) -> None:
    """Writes a run's LoRA with a model card and an example that runs, ready to be given away."""
    with explained(debug):
        from raydense.evaluation.export import export as write

        write(run, to)
        typer.echo(f"LoRA     {to}/pytorch_lora_weights.safetensors")
        typer.echo(f"card     {to}/README.md\nexample  {to}/example.py   (run it there)")
