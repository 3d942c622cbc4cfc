"""`raydense status`: what a run directory says about its run; nothing needs to be running for it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydense.config import Config, ConfigError
from raydense.core.interfaces import FAULTS
from raydense.core.messages import command
from raydense.files.durable import json_if_there
from raydense.records.metrics import read_rows
from raydense.records.run_dir import RunDirectory

if TYPE_CHECKING:
    from rich.console import Console

RUNS = Path("runs")
LAST_STEP = ("loss", "log_ratio/clip_fraction", "pair_accuracy", "skipped")


def latest_run() -> Path:
    """The run under runs/ that was written to last. Raises: ConfigError if there is none."""
    found = [path.parent for path in RUNS.glob("*/config.yaml")]
    if not found:
        raise ConfigError(f"there is no run under {RUNS.resolve()}; name one: raydense status RUN")
    return max(found, key=_last_write)


def read_status(root: Path) -> dict[str, Any]:
    """What is known of the run in `root`; JSON-ready.

    Raises: ConfigError if `root` holds no run.
    """
    run_dir = RunDirectory(root)
    config = run_dir.read_config()
    metrics, telemetry = list(read_rows(run_dir.metrics)), list(read_rows(run_dir.telemetry))
    summary, progress = json_if_there(root / "summary.json"), _progress(config, metrics, telemetry)
    return {
        "run": str(root),
        "name": config.name,
        "state": "finished" if summary and progress["steps"] == progress["steps_total"] else "unfinished",
        "failure": run_dir.read_failure(),
        "last_write_s": round(time.time() - _last_write(root), 1),
        "progress": progress,
        "rewards": [row["reward/mean"] for row in metrics if row["kind"] == "stage"],
        "last_step": next((row for row in reversed(metrics) if row["kind"] == "step"), None),
        "fleet": _fleet(telemetry),
        "ledger": [row for row in telemetry if row["kind"] == "ledger"],
        "checkpoints": _checkpoints(run_dir),
        "summary": summary,
    }


def show_status(status: Mapping[str, Any], console: Console) -> None:
    """Prints a status as a table for people."""
    from rich.table import Table

    table = Table("", "", show_header=False, title=f"{status['name']} in {status['run']}", title_justify="left")
    for name, value in _lines(status):
        table.add_row(name, value)
    console.print(table)


def _lines(status: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    progress, fleet, step = status["progress"], status["fleet"], status["last_step"]
    yield "state", f"{status['state']}, last written {status['last_write_s']:.0f} s ago"
    if status["failure"]:
        yield "stopped", status["failure"]
    yield "stage", f"{progress['stage']} of {progress['stages']}, {progress['phase']}"
    yield "units", f"{progress['units']} of {progress['units_a_stage']} of this stage"
    yield "gradient steps", f"{progress['steps']:,} of {progress['steps_total']:,}"
    if status["rewards"]:
        yield "reward by stage", " ".join(f"{reward:.4f}" for reward in status["rewards"])
    if step:
        yield "last step", ", ".join(f"{name} {step[name]:.4g}" for name in LAST_STEP if name in step)
    samplers = ", ".join(f"{name} ({units} units)" for name, units in fleet["units_by_sampler"].items())
    faults = f"{fleet['deaths']} deaths, {fleet['hangs']} hangs, {fleet['retried']} units retried"
    yield "fleet", f"{samplers or 'nothing sampled yet'}; {faults}, {fleet['resampled']} sampled again"
    if fleet["images_per_s"]:
        yield "speed", f"{fleet['images_per_s']:.3g} images/s a sampler"
    for account in status["ledger"][-1:]:
        yield "ledger", f"stage {account['stage'] + 1}: {account['finished']} of {account['issued']} units finished"
    good = [c["name"] for c in status["checkpoints"] if c["complete"]]
    yield "last checkpoint", f"{good[-1]} ({len(good)} kept)" if good else "none yet"
    if status["state"] == "unfinished" and good:
        yield "to continue", command("train", "--resume", status["run"])


def _progress(config: Config, metrics: list[dict[str, Any]], telemetry: list[dict[str, Any]]) -> dict[str, Any]:
    steps = max((row["step"] for row in metrics if row["kind"] == "step"), default=0)
    collected = max((row["stage"] + 1 for row in metrics if row["kind"] == "stage"), default=0)
    units = {row["unit"] for row in telemetry if row["kind"] == "unit" and row["stage"] == collected}
    per_stage, total = config.stage.steps, config.stage.count * config.stage.steps
    a_stage = -(-config.stage.groups // config.sampler.prompts_at_once)
    training = steps < collected * per_stage
    if steps == total:
        stage, phase = config.stage.count, "trained"
    else:
        stage, phase = (collected, "training") if training else (collected + 1, "sampling")
    return {
        "stage": stage,
        "stages": config.stage.count,
        "phase": phase,
        "units": a_stage if training or steps == total else len(units),
        "units_a_stage": a_stage,
        "steps": steps,
        "steps_total": total,
    }


def _fleet(telemetry: list[dict[str, Any]]) -> dict[str, Any]:
    units = [row for row in telemetry if row["kind"] == "unit"]
    latest = [row for row in units if row["stage"] == units[-1]["stage"]]
    busy = sum(sum(row["seconds"].values()) for row in latest)
    ledger = [row for row in telemetry if row["kind"] == "ledger"]
    return {
        "units_by_sampler": dict(sorted(Counter(row["sampler"] for row in latest).items())),
        "images_per_s": sum(row["images"] for row in latest) / busy if busy else None,
        **{name: ledger[-1].get(f"fleet/{name}", 0) if ledger else 0 for name in FAULTS},
    }


def _checkpoints(run_dir: RunDirectory) -> list[dict[str, Any]]:
    """In order; one without its manifest was cut while it was written."""
    if not run_dir.checkpoints.is_dir():
        return []
    return [
        {"name": path.name, "complete": (path / "manifest.json").is_file()}
        for path in sorted(run_dir.checkpoints.iterdir())
    ]


def _last_write(root: Path) -> float:
    return max(path.stat().st_mtime for path in (root, *root.iterdir()))
