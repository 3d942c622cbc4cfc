"""The command line: parse, call, print. Heavy imports wait until a command needs them."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from raydense.config import DEFAULT_PRESET, Config, ConfigError, load_config, preset_names

EXIT_FAILED, EXIT_BAD_INPUT = 1, 2  # and 128 + the number of the signal that stopped a run

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.callback()
def _root() -> None:
    """Align text-to-image diffusion models with human preference, distributed on Ray."""


@app.command(epilog="Example: `raydense train --set seed=7 --out runs/seven`")
def train(
    config_file: Annotated[Path | None, typer.Argument(metavar="[CONFIG.yaml]", show_default=False)] = None,
    preset: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(preset_names())} (default: {DEFAULT_PRESET}).")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Overrides one setting; repeatable."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="New run directory (default: runs/NAME-TIME).")] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Continue this run; the result has the same bytes on the CPU.")
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="In one process, without Ray.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Trains: rolls out, scores, learns, stage by stage; ends with a LoRA, pictures and a summary."""
    console = Console(soft_wrap=True)
    try:
        if resume is not None and (config_file or preset or out):
            raise ConfigError(f"--resume={resume} has its own configuration and directory; give only --set beside it")
        config = None if resume else load_config(config_file, preset, overrides)
        _train(config, resume or out, overrides or [], local, console)
    except typer.Exit:
        raise
    except Exception as error:
        if debug:
            raise
        bad_input = isinstance(error, ConfigError | ValueError | FileNotFoundError)
        _fail(str(error) or type(error).__name__, EXIT_BAD_INPUT if bad_input else EXIT_FAILED)


def _train(config: Config | None, out: Path | None, overrides: list[str], local: bool, console: Console) -> None:
    """Starts `config` in `out`; without a config, continues the run that lies there."""
    from raydense.runtime.run_dir import default_out
    from raydense.runtime.stopping import StopRequested
    from raydense.runtime.train import resume, train

    if config is None:
        assert out is not None
        root, run = out, partial(resume, out, overrides)
    else:
        root = out or default_out(config)
        run = partial(train, config, root)
    try:
        summary = run(local=local, console=console)
    except (KeyboardInterrupt, StopRequested) as stop:
        signal_number = stop.signal_number if isinstance(stop, StopRequested) else signal.SIGINT
        _fail(f"stopped; continue with: raydense train --resume {root}", 128 + signal_number)
    console.print(_gain_table(summary))
    console.print(f"LoRA      {root / 'lora' / 'pytorch_lora_weights.safetensors'}")
    console.print(f"pictures  {root / 'images' / 'before-after.png'}")
    console.print(f"summary   {root / 'summary.json'}   ({summary['wall_s']:.0f} s)")


def _gain_table(summary: Mapping[str, Any]) -> Table:
    table = Table(title=f"{summary['name']}, seed {summary['seed']}: mean score, before and after")
    for column in ("judge", "prompts", "before", "after", "gain ± standard error"):
        table.add_column(column, justify="left" if column in ("judge", "prompts") else "right")
    judges = {f"{summary['scorer']} (trained on)": summary["reward"], **summary["monitors"]}
    for judge, by_set in judges.items():
        for prompts, row in by_set.items():
            gain = row["gain"]
            table.add_row(
                judge,
                prompts,
                f"{row['before']['mean']:.4f}",
                f"{row['after']['mean']:.4f}",
                f"{gain['mean']:+.4f} ± {gain['se']:.4f}",
            )
    return table


def _fail(message: str, code: int) -> None:
    typer.echo(f"raydense: {message}", err=True)
    raise typer.Exit(code)


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


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `raydense` command; `arguments` default to the process's own."""
    _check_neighbours()
    app(arguments)


if __name__ == "__main__":
    main()
