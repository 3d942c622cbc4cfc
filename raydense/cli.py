"""The command line: one line a command, each in a module of `raydense.commands`. Heavy imports wait until one runs.

Exit codes: 0 done; 1 failed; 2 bad input, found before any actor started; 128 + N stopped by signal N (130 Ctrl-C,
143 SIGTERM), with a directory that `raydense train --resume` continues. A reader that leaves (`| head`) stops nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import typer

from raydense.commands import (
    bench,
    chaos,
    compare,
    config,
    doctor,
    evaluate,
    export,
    report,
    sample,
    status,
    sweep,
    train,
)
from raydense.commands.common import EXIT_BAD_INPUT
from raydense.core.terminal import guard_output
from raydense.core.text import half_character
from raydense.core.waiting import share_the_machine

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.callback()
def _root() -> None:
    """Align text-to-image diffusion models with human preference, distributed on Ray."""


app.command(epilog=train.EXAMPLE)(train.train)
app.command(epilog=config.EXAMPLE)(config.config)
app.command(epilog=status.EXAMPLE)(status.status)
app.command(epilog=report.EXAMPLE)(report.report)
app.command(epilog=doctor.EXAMPLE)(doctor.doctor)
app.command(epilog=bench.EXAMPLE)(bench.bench)
app.command(epilog=sample.EXAMPLE)(sample.sample)
app.command(epilog=evaluate.EXAMPLE)(evaluate.evaluate)
app.command(epilog=compare.EXAMPLE)(compare.compare)
app.command(epilog=export.EXAMPLE)(export.export)
app.command(epilog=sweep.EXAMPLE)(sweep.sweep)
app.command(epilog=chaos.EXAMPLE)(chaos.chaos)


def _check_neighbours() -> None:
    """`actors` and `learner` are generic names: refuse where another package took one."""
    home = Path(__file__).resolve().parents[1]
    for name in ("actors", "learner"):
        spec = find_spec(name)
        where = Path(spec.origin).resolve().parent if spec and spec.origin else None
        if where != home / name:
            typer.echo(
                f"raydense: package {name!r} is {where}, not {home / name}; another package took its name",
                err=True,
            )
            sys.exit(EXIT_BAD_INPUT)


def _check_arguments(arguments: Sequence[str]) -> None:
    """Bytes that are no text would be found out by whatever writes them first, perhaps at the end of a run."""
    for argument in arguments:
        if half := half_character(argument):
            typer.echo(
                f"raydense: argument {argument!r} holds {half}, a byte that is no {sys.getfilesystemencoding()}; write "
                "it in UTF-8, and set PYTHONUTF8=1 where that is not what the locale has",
                err=True,
            )
            sys.exit(EXIT_BAD_INPUT)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `raydense` command; `arguments` default to the process's own."""
    guard_output()
    share_the_machine()
    _check_neighbours()
    _check_arguments(sys.argv[1:] if arguments is None else arguments)
    app(arguments)


if __name__ == "__main__":
    main()
