"""`raydense doctor`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from raydense.commands.common import (
    EXIT_FAILED,
    AsJson,
    ConfigFile,
    Debug,
    Overrides,
    Preset,
    Rate,
    explained,
    fail,
)
from raydense.config import load_config

EXAMPLE = "Example: `raydense doctor --preset tiny`"


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
    with explained(debug):
        config = load_config(config_file, preset, overrides)

        from raydense.checks.doctor import examine
        from raydense.records.run_dir import here_until_done, locate

        failed = 0
        root, mirror = locate(out)
        with here_until_done(mirror, typer.echo):
            for check in examine(config, root, tflops):
                failed += not check.ok
                line = f"{'ok  ' if check.ok else 'FAIL'}  {check.name:<23} {check.detail}"
                typer.echo(json.dumps(check.__dict__, ensure_ascii=False) if as_json else line)
        if failed:
            fail(f"{failed} of the checks failed", EXIT_FAILED)
