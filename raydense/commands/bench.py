"""`raydense bench`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from raydense.commands.common import Debug, Overrides, check_new_file, explained
from raydense.core.messages import command
from raydense.core.terminal import open_console

EXAMPLE = """Example: `raydense bench --model sd15-multi --json bench.json`, then
`raydense train --preset multi-prompt --dry-run --rates bench.json`"""


def bench(
    models: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="NAME", help="tiny, unet-78m, sd15 or sd15-multi; repeatable. Default: tiny."),
    ] = None,
    overrides: Overrides = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed, after one to warm up.")] = 5,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also writes what was found, for --rates.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Measures sampler, learner and scorer on this device, without Ray: rates, work, memory, time by phase.

    The models are the embedded one, a U-Net of 78 M parameters and Stable Diffusion 1.5's architecture with the work
    units and batches of the single-prompt preset (sd15) or the multi-prompt one (sd15-multi); all but the first have
    random weights and download nothing. On a CPU they do less than their preset, and say so.
    """
    with explained(debug):
        if json_file is not None:
            check_new_file("--json", json_file)

        from raydense.bench.measure import machine, measure, plan_workloads
        from raydense.bench.table import bench_table, versions_line
        from raydense.records.progress import ProgressDisplay

        workloads = plan_workloads(models or ["tiny"], overrides or [])
        found: dict[str, Any] = {**machine(workloads), "command": command(*sys.argv[1:]), "models": {}}
        console = open_console(soft_wrap=not sys.stdout.isatty())
        console.print(versions_line(found))
        for workload in workloads:
            with ProgressDisplay(open_console(stderr=True)) as display:
                found["models"][workload.model] = measure(workload, rounds, display.update)
            console.print(bench_table(workload.model, found["models"][workload.model]))
            if json_file is not None:  # whatever becomes of the next model
                json_file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
