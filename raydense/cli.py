"""The command line: parse, call, print. Heavy imports wait until a command needs them.

Exit codes: 0 done; 1 failed; 2 bad input, found before any actor started; 128 + N stopped by signal N (130 Ctrl-C,
143 SIGTERM), with a directory that `raydense train --resume` continues.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from raydense.config import DEFAULT_PRESET, Config, ConfigError, load_config, preset_names

EXIT_FAILED, EXIT_BAD_INPUT = 1, 2  # and 128 + the number of the signal that stopped a run
EXIT_CODES = "Exit codes: 0 done, 1 failed, 2 bad input (nothing was started), 128 + N stopped by signal N."

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="markdown")

ConfigFile = Annotated[Path | None, typer.Argument(metavar="[CONFIG.yaml]", show_default=False)]
Preset = Annotated[str | None, typer.Option(help=f"One of {', '.join(preset_names())} (default: {DEFAULT_PRESET}).")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Overrides one setting; repeatable.")
]
Local = Annotated[bool, typer.Option("--local", help="In one process, without Ray.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
LogFormat = Literal["auto", "plain", "json"]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Rate = Annotated[float, typer.Option(min=1e-6, help="TFLOP/s that a device sustains, for estimated hours.")]


@app.callback()
def _root() -> None:
    """Align text-to-image diffusion models with human preference, distributed on Ray."""


@app.command(epilog=f"Example: `raydense train --set seed=7 --out runs/seven`\n\n{EXIT_CODES}")
def train(
    config_file: ConfigFile = None,
    preset: Preset = None,
    overrides: Overrides = None,
    out: Annotated[str | None, typer.Option(help="New run directory or URI (default: runs/NAME-TIME).")] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Continue this run; the result has the same bytes on the CPU.")
    ] = None,
    replay_from: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Learn from this run's stored groups, without a sampler.")
    ] = None,
    local: Local = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything but weights, print the plan.")] = False,
    tflops: Rate = 100.0,
    log_format: Annotated[
        Literal["auto", "plain", "json"], typer.Option(help="A live display on a terminal, lines, or JSON lines.")
    ] = "auto",
    debug: Debug = False,
) -> None:
    """Trains: rolls out, scores, learns, stage by stage; ends with a LoRA, pictures and a summary."""
    with _explained(debug):
        if resume is not None and (config_file or preset or out or dry_run):
            raise ConfigError(f"--resume={resume} has its own configuration and directory; give only --set beside it")
        if replay_from is not None:
            if resume or config_file or preset or dry_run:
                raise ConfigError(f"--replay-from={replay_from} has its own configuration; give only --set and --out")
            _train_offline(replay_from, overrides or [], out, log_format)
            return
        config = None if resume else load_config(config_file, preset, overrides)
        if config is not None and dry_run:
            _dry_run(config, tflops, as_json=log_format == "json")
            return
        _train(config, resume or out, overrides or [], local, log_format)


def _dry_run(config: Config, tflops: float, as_json: bool) -> None:
    from raydense.runtime.dry_run import check_and_plan, show_plan

    plan = check_and_plan(config, tflops)
    if as_json:
        typer.echo(json.dumps(plan.as_dict()))
    else:
        show_plan(config, plan, Console(soft_wrap=True))


def _train(
    config: Config | None,
    out: str | None,
    overrides: list[str],
    local: bool,
    log_format: LogFormat,
) -> None:
    """Starts `config` in `out`; without a config, continues the run that lies there."""
    from raydense.runtime.progress import ProgressDisplay
    from raydense.runtime.run_dir import default_out, locate
    from raydense.runtime.stopping import StopRequested
    from raydense.runtime.train import resume, train

    if out is not None:
        root, mirror = locate(out)
    else:
        assert config is not None
        root, mirror = default_out(config), None
    shown = out if mirror else root
    run = partial(resume, root, overrides, mirror) if config is None else partial(train, config, root, mirror)
    display = ProgressDisplay(Console(soft_wrap=True), log_format)
    try:
        summary = run(local=local, display=display)
    except (KeyboardInterrupt, StopRequested) as stop:
        signal_number = stop.signal_number if isinstance(stop, StopRequested) else signal.SIGINT
        _fail(f"stopped; continue with: raydense train --resume {shown}", 128 + signal_number)
    display.result(summary, _gain_table(summary))
    display.say(f"LoRA      {shown}/lora/pytorch_lora_weights.safetensors")
    display.say(f"pictures  {shown}/images/before-after.png")
    display.say(f"summary   {shown}/summary.json   ({summary['wall_s']:.0f} s)")


@app.command(epilog="Example: `raydense status runs/seven`")
def status(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="Its directory (default: the latest).")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Shows what a run does: stage, units, rewards, fleet, ledger, last checkpoint."""
    from raydense.runtime.status import latest_run, read_status, show_status

    with _explained(debug):
        found = read_status(run or latest_run())
        if as_json:
            typer.echo(json.dumps(found))
        else:
            show_status(found, Console(soft_wrap=True))


@app.command(epilog="Example: `raydense doctor --preset tiny`")
def doctor(
    config_file: ConfigFile = None,
    preset: Preset = None,
    overrides: Overrides = None,
    out: Annotated[str, typer.Option(help="Where the run would lie; its disk is checked.")] = "runs",
    tflops: Rate = 100.0,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Checks this machine for a configuration, then tries one work unit and one learner step. Fails if one fails."""
    with _explained(debug):
        config = load_config(config_file, preset, overrides)

        from raydense.runtime.doctor import examine
        from raydense.runtime.run_dir import locate

        failed = 0
        for check in examine(config, locate(out)[0], tflops):
            failed += not check.ok
            line = f"{'ok  ' if check.ok else 'FAIL'}  {check.name:<23} {check.detail}"
            typer.echo(json.dumps(check.__dict__, ensure_ascii=False) if as_json else line)
        if failed:
            _fail(f"{failed} of the checks failed", EXIT_FAILED)


def _train_offline(source: Path, overrides: list[str], out: str | None, log_format: LogFormat) -> None:
    """Learns in `out` from the groups that the run in `source` stored."""
    from raydense.runtime.offline import offline_config, train_offline
    from raydense.runtime.progress import ProgressDisplay
    from raydense.runtime.run_dir import default_out, locate

    root, mirror = locate(out) if out else (default_out(offline_config(source, overrides)), None)
    display = ProgressDisplay(Console(soft_wrap=True), log_format)
    train_offline(source, overrides, root, mirror, display=display)
    display.say(f"LoRA      {out if mirror else root}/lora/pytorch_lora_weights.safetensors")


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
                f"{gain['mean']:+.4f}" + (f" ± {gain['se']:.4f}" if gain["se"] is not None else ""),
            )
    return table


@contextmanager
def _explained(debug: bool) -> Iterator[None]:
    """Turns an error into one line and an exit code; only a ConfigError is the user's."""
    try:
        yield
    except typer.Exit:
        raise
    except Exception as error:
        if debug:
            raise
        if isinstance(error, ConfigError):
            _fail(str(error), EXIT_BAD_INPUT)
        lines = [line for line in str(error).splitlines() if line.strip()]
        _fail(f"{lines[-1] if lines else ''} ({type(error).__name__}; --debug shows where)", EXIT_FAILED)


def _fail(message: str, code: int) -> None:
    for line in message.splitlines():
        typer.echo(f"raydense: {line}", err=True)
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
