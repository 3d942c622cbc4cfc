"""`raydense evaluate`."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raydense.commands.common import (
    EXIT_CODES,
    AcceptChanges,
    Debug,
    Local,
    LogFormatOption,
    Overrides,
    explained,
)
from raydense.config import ConfigError, changed_config, load_config
from raydense.core.terminal import open_console

if TYPE_CHECKING:
    from raydense.evaluation.evaluate import Evaluation
    from raydense.records.progress import ProgressDisplay

EXAMPLE = (
    "Example: `raydense evaluate runs/one runs/two --prompts set://hpsv2-benchmark --scorer hpsv2 --out runs/table`"
    f"\n\n{EXIT_CODES}"
)
MAY_CHANGE = ("seed", "policy", "steps", "sampler", "samplers", "evaluate", "reward")


def evaluate(
    models: Annotated[list[str], typer.Argument(metavar="RUN|LORA...", help="Run directories, or LoRAs by file.")],
    prompts: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]PROMPTS", help="File or set; repeatable. Default: the run's, seen and unseen."),
    ] = None,
    scorer: Annotated[
        list[str] | None,
        typer.Option(metavar="YAML|KIND", help="A judge; repeatable. Default: the run's scorer and monitors."),
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Pictures a prompt. Default: the run's.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Prompts a column, evenly spaced through it.")] = None,
    out: Annotated[Path | None, typer.Option(help="For the tables. Default: runs/evaluate-TIME.")] = None,
    config_file: Annotated[Path | None, typer.Option("--config", help="How to sample. Default: the run's.")] = None,
    preset: Annotated[str | None, typer.Option(help="A preset in place of --config.")] = None,
    overrides: Overrides = None,
    accept_changes: AcceptChanges = False,
    local: Local = False,
    log_format: LogFormatOption = "auto",
    debug: Debug = False,
) -> None:
    """Compares LoRAs with their base model: same prompts, same noise, several judges; means, win-rates, intervals."""
    with explained(debug):
        from raydense.evaluation.candidates import chain_notes, continue_sources, find_sources, shared_config
        from raydense.evaluation.evaluate import evaluate as judge_models
        from raydense.evaluation.evaluate import read_columns, with_scorers
        from raydense.planning.preflight import check_models
        from raydense.records.progress import ProgressDisplay

        sources = find_sources(models)
        chosen = load_config(config_file, preset) if config_file or preset else None
        config = shared_config(sources, chosen)
        config = with_scorers(changed_config(config, overrides or [], MAY_CHANGE, "an evaluation"), scorer or [])
        given = (("prompts.", prompts or chosen), ("scorer ", scorer or chosen))
        unread = tuple(setting for setting, by in given if by)
        pinned = continue_sources(config, sources, accept_changes=accept_changes, leave_out=unread)
        pipeline = check_models(pinned.config)
        notes = chain_notes(pinned.config, pipeline, sources)
        columns = read_columns(pinned.config, prompts or [], limit)
        out = _new_directory(out)
        images = images or config.evaluate.images_per_prompt
        display = ProgressDisplay(open_console(), log_format)
        with display:
            for note in (*notes, *pinned.notes, *pipeline.notes, *columns.notes):
                display.say(note)
            found = judge_models(config, pinned, pipeline, sources, columns, images, local=local, display=display)
        _write(out, found, display)


def _new_directory(out: Path | None) -> Path:
    out = out or Path("runs") / f"evaluate-{datetime.now():%Y%m%d-%H%M%S}"
    if (out / "evaluation.json").exists():
        raise ConfigError(f"--out={out} holds an evaluation already and is never overwritten; give a new directory")
    return out


def _write(out: Path, found: Evaluation, display: ProgressDisplay) -> None:
    from raydense.evaluation.table import sheets, write_evaluation

    write_evaluation(out, found)
    for sheet in sheets(found):
        display.result({"table": sheet.title, "columns": sheet.columns, "rows": sheet.rows}, sheet.rich())
    display.say(f"tables  {out}/evaluation.md, evaluation.csv, evaluation.json")
