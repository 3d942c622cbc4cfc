"""`raydense sweep`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raydense.commands.common import (
    EXIT_CODES,
    EXIT_FAILED,
    AcceptChanges,
    ConfigFile,
    Debug,
    Local,
    Overrides,
    Preset,
    explained,
    fail,
)
from raydense.core.messages import command
from raydense.core.terminal import open_console

if TYPE_CHECKING:
    from rich.console import Console

    from raydense.evaluation.sweep import Trial
    from raydense.evaluation.sweep_runs import SweepRunner
    from raydense.evaluation.sweep_table import Results
    from raydense.evaluation.until_decided import Rule

EXAMPLE = (
    "Example: `raydense sweep --local --grid steps.gamma=0.8,1 --grid steps.exclude_last=0,2 --seeds 101,102,103 "
    f"--out runs/gamma`\n\n{EXIT_CODES}"
)


Out = Annotated[Path, typer.Option(help="For the runs and the results; finished runs in it are kept.")]
Grid = Annotated[
    list[str] | None, typer.Option(metavar="KEY=V1,V2", help="Values of one setting; repeatable: all combinations.")
]
Arms = Annotated[
    list[str] | None, typer.Option(metavar="KEY=V,KEY=V", help="Settings that go together; repeatable: each alone.")
]
Seeds = Annotated[
    str | None, typer.Option(metavar="S1,S2-S3", help="Each combination with each (default: the configuration's).")
]
Jobs = Annotated[int | None, typer.Option(min=1, help="Runs side by side (default: as many as fit).")]
Against = Annotated[
    str | None, typer.Option(metavar="SETTING", help="Whom the others are compared with (default: the first).")
]
Paired = Annotated[
    bool, typer.Option("--paired", help="Show differences seed by seed, and how many seeds would decide them.")
]
UntilDecided = Annotated[
    bool, typer.Option("--until-decided", help="Add seeds after the given ones until one comparison is decided.")
]
MaxSeeds = Annotated[
    int | None, typer.Option(min=3, max=200, help="Of --until-decided, the given ones included (default: 30).")
]
Compare = Annotated[
    str | None, typer.Option(metavar="SETTING", help="Whose difference is decided (default: the only other one's).")
]
On = Annotated[
    str | None, typer.Option(metavar="PROMPTS", help="On which it is: train or unseen (default: unseen if there are).")
]
Judge = Annotated[str | None, typer.Option(metavar="NAME", help="By whom it is (default: who is trained on).")]


def sweep(
    out: Out,
    config_file: ConfigFile = None,
    preset: Preset = None,
    overrides: Overrides = None,
    grid: Grid = None,
    arm: Arms = None,
    seeds: Seeds = None,
    jobs: Jobs = None,
    against: Against = None,
    paired: Paired = False,
    until_decided: UntilDecided = False,
    max_seeds: MaxSeeds = None,
    compare: Compare = None,
    on: On = None,
    judge: Judge = None,
    accept_changes: AcceptChanges = False,
    local: Local = False,
    debug: Debug = False,
) -> None:
    """Trains every combination of settings and seeds, then compares: tables, plots. Continues where it was cut."""
    with explained(debug):
        from raydense.evaluation.sweep import (
            check_pairs,
            find_setting,
            more_seeds,
            parse_arms,
            parse_grid,
            parse_seeds,
            plan_sweep,
        )
        from raydense.evaluation.sweep_runs import SweepRunner, default_jobs
        from raydense.evaluation.sweep_table import write_results
        from raydense.evaluation.until_decided import Asked, most_seeds, name_rule

        given, asked, cells = parse_seeds(seeds), Asked(compare, on, judge, max_seeds), parse_grid(grid or [])
        most, arms = most_seeds(until_decided, asked, given), parse_arms(arm or [], cells)
        all_seeds = more_seeds(given, most) if given and most else given
        trials = plan_sweep(out, config_file, preset, overrides or [], cells, all_seeds, accept_changes, arms)
        if paired:
            check_pairs(trials)
        settings = list(dict.fromkeys(trial.settings for trial in trials))
        first = find_setting("--against", against, settings) if against is not None else settings[0]
        rule = name_rule(trials, len(given), first, asked) if given and most else None
        source = [str(config_file)] if config_file else ["--preset", preset] if preset else []
        side_by_side, console = jobs or default_jobs(trials[0].config, local), open_console()
        runner = SweepRunner(source, local=local, jobs=side_by_side, accept_changes=accept_changes, say=console.print)
        trials = _run(out, trials, rule, runner)
        if any(trial.finished for trial in trials):
            _show(console, out, write_results(out, trials, first, paired=paired))
        if runner.failed:
            fail(f"{len(runner.failed)} of {len(trials)} runs failed; the same command tries them again", EXIT_FAILED)


def _run(out: Path, trials: list[Trial], rule: Rule | None, runner: SweepRunner) -> list[Trial]:
    """Returns: those that were needed."""
    from raydense.evaluation.until_decided import run_until_decided
    from raydense.training.stopping import StopRequested

    try:
        if rule:
            return run_until_decided(out, rule, trials, runner)
        runner.run(trials)
    except StopRequested as stop:
        fail(f"stopped; continue with: {command(*sys.argv[1:])}", 128 + stop.signal_number)
    return trials


def _show(console: Console, out: Path, results: Results) -> None:
    for sheet in results.sheets:
        console.print(sheet.rich())
    for note in results.notes:
        console.print(note)
    console.print(f"table  {out}/sweep.md, sweep.csv, sweep.json\nplot   {out}/{', '.join(results.plots)}")
