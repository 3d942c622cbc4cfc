"""`raydense chaos`."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raydense.commands.common import (
    EXIT_FAILED,
    AsJson,
    ConfigFile,
    Debug,
    Overrides,
    Preset,
    explained,
    fail,
)
from raydense.config import load_config

if TYPE_CHECKING:
    from raydense.checks.ray_chaos import Disturbance

EXAMPLE = "Example: `raydense chaos --faults 10 --seed 1`"
SHORT = ("stage={count: 4, groups: 24, steps: 6}", "sampler.unit_prompts=4", "train.batch_groups=8",
         "evaluate={prompts: 2, images_per_prompt: 2, grid_prompts: 2, grid_images: 2}")  # fmt: skip


def chaos(
    config_file: ConfigFile = None,
    preset: Preset = None,
    overrides: Overrides = None,
    faults: Annotated[int, typer.Option(min=1, help="How many, over all runs.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the kinds of faults and the pauses between them.")] = 0,
    pause: Annotated[float, typer.Option(min=0.1, help="Seconds of work between two faults, on average.")] = 4.0,
    a_run: Annotated[int, typer.Option(min=1, help="Faults a run; then the next run begins.")] = 10,
    out: Annotated[Path | None, typer.Option(help="New directory for the runs (default: a temporary one).")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Disturbs runs on a simulated cluster on purpose, in both schedules, and compares bytes. Fails if one differs.

    Without a configuration: the embedded model, in short runs.
    """
    with explained(debug):
        short = [] if config_file or preset else list(SHORT)
        config = load_config(config_file, preset, [*short, *(overrides or [])])

        # before Ray is imported, which reads it then: the simulated cluster is closed to everybody else
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
        from raydense.checks.ray_chaos import Chaos, chaos_cluster
        from raydense.checks.ray_chaos import as_json as to_json

        root = out or Path(tempfile.mkdtemp(prefix="raydense-chaos-"))
        root.mkdir(parents=True, exist_ok=True)
        (root / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")

        def say(line: str) -> None:
            typer.echo(line, err=as_json)

        trouble = Chaos(root / "config.yaml", root, seed, pause, say)
        outcomes: list[Disturbance] = []
        with chaos_cluster() as (cluster, nodes):
            while (left := faults - sum(outcome.faults.total() for outcome in outcomes)) > 0:
                schedule = ("synchronous", "overlapped")[len(outcomes) % 2]
                name = f"run-{len(outcomes):03d}"
                outcomes.append(trouble.disturb(cluster, nodes, schedule, name, min(a_run, left)))
                if not as_json:
                    say(_line(name, outcomes[-1]))
        if as_json:
            typer.echo(to_json(outcomes))
        else:
            say(_totals(outcomes))
        if wrong := sum(not outcome.ok for outcome in outcomes):
            fail(f"{wrong} of {len(outcomes)} runs differ from the undisturbed one; see {root}", EXIT_FAILED)


def _line(name: str, outcome: Disturbance) -> str:
    verdict = "the same bytes" if outcome.same_bytes else "OTHER BYTES"
    balance = "the ledger balances" if outcome.balanced else "THE LEDGER DOES NOT BALANCE"
    return f"{name} ({outcome.schedule}): {verdict}, {balance}; {_counts(outcome.ledger)}; {outcome.wall_s:.0f} s"


def _totals(outcomes: list[Disturbance]) -> str:
    faults: Counter[str] = sum((outcome.faults for outcome in outcomes), Counter())
    ledger: Counter[str] = sum((Counter(outcome.ledger) for outcome in outcomes), Counter())
    return f"{faults.total()} faults in {len(outcomes)} runs: {_counts(faults)}; {_counts(ledger)}"


def _counts(counter: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counter.items())
