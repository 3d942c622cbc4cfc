"""`raydense train`."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raydense.commands.common import (
    EXIT_CODES,
    AcceptChanges,
    ConfigFile,
    Debug,
    Local,
    LogFormat,
    LogFormatOption,
    Overrides,
    Preset,
    Rate,
    explained,
    fail,
)
from raydense.config import DEFAULT_PRESET, Config, ConfigError, load_config
from raydense.core.messages import command
from raydense.core.terminal import open_console
from raydense.files.locations import below

if TYPE_CHECKING:
    from raydense.records.progress import ProgressDisplay

EXAMPLE = f"Example: `raydense train --set seed=7 --out runs/seven`\n\n{EXIT_CODES}"


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
    preferences: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Parquet of people's orders of --replay-from's trajectories, to learn instead."
        ),
    ] = None,
    accept_changes: AcceptChanges = False,
    local: Local = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything but weights, print the plan.")] = False,
    tflops: Rate = 100.0,
    rates: Annotated[
        str | None,
        typer.Option(metavar="FILE[#MODEL]", help="For --dry-run: a JSON file from raydense bench."),
    ] = None,
    price_per_gpu_hour: Annotated[float | None, typer.Option(min=0, help="For --dry-run: of one device.")] = None,
    log_format: LogFormatOption = "auto",
    debug: Debug = False,
) -> None:
    """Trains: rolls out, scores, learns, stage by stage; ends with a LoRA, pictures and a summary."""
    with explained(debug):
        if resume is not None and (config_file or preset or out or dry_run):
            raise ConfigError(f"--resume={resume} has its own configuration and directory; give only --set beside it")
        if replay_from is not None:
            if resume or config_file or preset or dry_run:
                raise ConfigError(f"--replay-from={replay_from} has its own configuration; give only --set and --out")
            _train_offline(replay_from, overrides or [], out, log_format, preferences, accept_changes)
            return
        if accept_changes and resume is None:
            raise ConfigError("--accept-changes is for a run that continues; add --resume or --replay-from")
        if preferences is not None:
            raise ConfigError(f"--preferences={preferences} orders stored trajectories; give --replay-from their run")
        if not dry_run and (rates is not None or price_per_gpu_hour is not None):
            raise ConfigError("--rates and --price-per-gpu-hour are for a plan; add --dry-run or leave them out")
        config = None if resume else load_config(config_file, preset, overrides)
        if config is not None and dry_run:
            _dry_run(config, tflops, rates, price_per_gpu_hour, as_json=log_format == "json")
            return
        origin = {"config": str(config_file)} if config_file else {"preset": preset or DEFAULT_PRESET}
        _train(config, resume or out, overrides or [], local, log_format, accept_changes, origin)


def _dry_run(config: Config, tflops: float, rates: str | None, price: float | None, as_json: bool) -> None:
    from raydense.planning.cost import Rates, estimate_cost
    from raydense.planning.dry_run import check_and_plan
    from raydense.planning.plan_table import show_plan

    plan = check_and_plan(config, tflops)
    found = Rates.measured(rates, config) if rates is not None else Rates.assumed(config, plan)
    cost = estimate_cost(config, plan, found, price)
    if as_json:
        typer.echo(json.dumps({**plan.as_dict(), "cost": cost.as_dict()}))
    else:
        show_plan(config, plan, cost, open_console())


def _train(
    config: Config | None,
    out: str | None,
    overrides: list[str],
    local: bool,
    log_format: LogFormat,
    accept_changes: bool,
    origin: Mapping[str, str],
) -> None:
    """Starts `config` in `out`; without a config, continues the run that lies there."""
    from raydense.planning.effects import idle_overrides
    from raydense.records.progress import ProgressDisplay
    from raydense.records.run_dir import default_out, here_until_done, locate
    from raydense.training.run import resume, train
    from raydense.training.stopping import StopRequested
    from raydense.training.summary import gain_sheet

    if out is not None:
        root, mirror = locate(out)
    else:
        assert config is not None
        root, mirror = default_out(config), None
    shown = mirror.uri if mirror else root
    continued = partial(resume, root, overrides, mirror, accept_changes=accept_changes)
    run = continued if config is None else partial(train, config, root, mirror, origin=origin)
    display = ProgressDisplay(open_console(), log_format)
    for note in idle_overrides(overrides, local):
        display.say(note)
    try:
        with here_until_done(mirror, display.say):
            summary = run(local=local, display=display)
    except (KeyboardInterrupt, StopRequested) as stop:
        signal_number = stop.signal_number if isinstance(stop, StopRequested) else signal.SIGINT
        fail(f"stopped; continue with: {command('train', '--resume', shown)}", 128 + signal_number)
    display.result(summary, gain_sheet(summary).rich())
    _say_where(display, shown, summary)
    display.say(f"pictures  {below(shown, 'images/before-after.png')}")
    display.say(f"summary   {below(shown, 'summary.json')}   ({summary['wall_s']:.0f} s)")


def _train_offline(
    source: Path,
    overrides: list[str],
    out: str | None,
    log_format: LogFormat,
    preferences: Path | None,
    accept_changes: bool,
) -> None:
    """Learns in `out` from the groups that the run in `source` stored."""
    from raydense.records.progress import ProgressDisplay
    from raydense.records.run_dir import default_out, here_until_done, locate
    from raydense.training.offline import offline_config, train_offline

    root, mirror = locate(out) if out else (default_out(offline_config(source, overrides)), None)
    display = ProgressDisplay(open_console(), log_format)
    with here_until_done(mirror, display.say):
        summary = train_offline(
            source,
            overrides,
            root,
            mirror,
            display=display,
            preferences=preferences,
            accept_changes=accept_changes,
        )
    _say_where(display, mirror.uri if mirror else root, summary)


def _say_where(display: ProgressDisplay, shown: str | Path, summary: Mapping[str, Any]) -> None:
    """The LoRA's file, and beside an average that of the last step's weights."""
    display.say(f"LoRA      {below(shown, 'lora/pytorch_lora_weights.safetensors')}")
    if "last_step" in summary:
        display.say(f"last step {below(shown, 'lora-last-step/pytorch_lora_weights.safetensors')}")
