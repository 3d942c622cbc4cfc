"""What every command shares: its options, and how an error becomes one line and an exit code."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from raydense.config import DEFAULT_PRESET, ConfigError, preset_names

EXIT_FAILED, EXIT_BAD_INPUT = 1, 2  # and 128 + the number of the signal that stopped a run
EXIT_CODES = "Exit codes: 0 done, 1 failed, 2 bad input (nothing was started), 128 + N stopped by signal N."

ConfigFile = Annotated[
    Path | None,
    typer.Argument(
        metavar="[CONFIG.yaml]", show_default=False, help="With `preset: NAME` at its top, only what differs from that."
    ),
]
Preset = Annotated[str | None, typer.Option(help=f"One of {', '.join(preset_names())} (default: {DEFAULT_PRESET}).")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Overrides one setting; repeatable.")
]
Local = Annotated[bool, typer.Option("--local", help="In one process, without Ray.")]
AcceptChanges = Annotated[
    bool, typer.Option("--accept-changes", help="Go on with files that are not what the run was made from.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
LogFormat = Literal["auto", "plain", "json"]
LogFormatOption = Annotated[LogFormat, typer.Option(help="A live display on a terminal, lines, or JSON lines.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Rate = Annotated[float, typer.Option(min=1e-6, help="TFLOP/s that a device sustains, for estimated hours.")]


@contextmanager
def explained(debug: bool) -> Iterator[None]:
    """Turns an error into one line and an exit code; only a ConfigError is the user's."""
    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        fail("stopped", 128 + signal.SIGINT)
    except Exception as error:
        if debug:
            raise
        if isinstance(error, ConfigError):
            fail(str(error), EXIT_BAD_INPUT)
        lines = [line for line in str(error).splitlines() if line.strip()]
        fail(f"{lines[-1] if lines else ''} ({type(error).__name__}; --debug shows where)", EXIT_FAILED)


def check_new_file(option: str, file: Path, *, make_parent: bool = False) -> None:
    """Before work starts whose result it will hold. Raises: ConfigError; a file that is there is never overwritten."""
    if file.exists():
        raise ConfigError(f"{option}={file} is there already and is never overwritten; give another name")
    try:
        if make_parent:
            file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    except OSError as error:
        raise ConfigError(f"{option}={file} cannot be written ({error.strerror}); give another place") from None
    file.unlink()


def fail(message: str, code: int) -> None:
    """Ends the command: each line of the message on stderr, then the exit code."""
    for line in message.splitlines():
        typer.echo(f"raydense: {line}", err=True)
    raise typer.Exit(code)
