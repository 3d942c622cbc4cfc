"""What a fresh process loads: Ray only where it is used, and next to nothing for --help."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

RAY_FREE = (
    "raydense.fleets.local_runner",
    "raydense.training.run",
    "raydense.training.stage_loop",
    "actors.sampler",
    "learner.sgd_learner",
)


def loaded_by(statement: str) -> set[str]:
    """Top-level packages in sys.modules of a fresh process after the statement."""
    code = f"import sys\n{statement}\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_local_runner_computes_without_ray() -> None:
    loaded = loaded_by("; ".join(f"import {module}" for module in RAY_FREE))
    assert {"torch", "diffusers", "raydense", "actors", "learner"} <= loaded
    assert "ray" not in loaded


def test_the_command_line_waits_with_what_is_heavy() -> None:
    loaded = loaded_by("import raydense.cli")
    assert not loaded & {"torch", "ray", "diffusers", "transformers", "peft", "numpy"}


def test_a_configuration_is_printed_without_what_is_heavy() -> None:
    loaded = loaded_by(
        "from typer.testing import CliRunner; from raydense.cli import app\n"
        "for arguments in (['config', '--preset', 'multi-prompt'], ['config', '--markdown']):\n"
        "    assert CliRunner().invoke(app, arguments).exit_code == 0"
    )
    assert not loaded & {"torch", "ray", "diffusers", "transformers", "peft", "numpy"}


def test_help_answers_at_once_and_names_the_commands() -> None:
    command = [Path(sys.executable).with_name("raydense"), "--help"]
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - started)
    assert "train" in done.stdout
    assert min(seconds) < 1.5  # under one on a quiet machine
