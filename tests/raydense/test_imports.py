"""What a fresh process loads: Ray only where it is used, and next to nothing for --help."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

RAY_FREE = (
    "raydense.fleets.local_runner",
    "raydense.training.run",
    "raydense.training.stage_loop",
    "actors.sampler",
    "learner.sgd_learner",
)


def loaded_by(statement: str, python: str | Path = sys.executable) -> set[str]:
    """The modules of a fresh process after the statement."""
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_local_runner_computes_without_ray(warm_python: Path) -> None:
    loaded = loaded_by("; ".join(f"import {module}" for module in RAY_FREE), warm_python)
    assert {"torch", "diffusers", "raydense", "actors", "learner"} <= loaded
    assert "ray" not in loaded


def test_the_command_line_waits_with_what_is_heavy() -> None:
    loaded = loaded_by("import raydense.cli")
    assert not loaded & {"torch", "ray", "diffusers", "transformers", "peft", "numpy"}


HEAVY = {"torch", "ray", "diffusers", "transformers", "peft", "accelerate", "pyarrow"}
READING = {  # commands that only read, and what else they do without
    ("config", "--preset", "multi-prompt"): {"numpy", "scipy", "matplotlib", "huggingface_hub"},
    ("config", "--markdown"): {"numpy", "scipy", "matplotlib", "huggingface_hub"},
    ("status", "RUN"): {"scipy", "matplotlib", "huggingface_hub", "PIL"},
    ("compare", "RUN", "OTHER"): {"scipy.stats", "matplotlib", "huggingface_hub", "PIL"},
    ("report", "RUN", "--out", "TO.html"): {"scipy.stats", "huggingface_hub"},
    ("export", "RUN", "--to", "TO"): {"scipy.stats", "matplotlib", "PIL"},
}


@pytest.mark.parametrize("command", READING)
def test_what_only_reads_waits_for_nothing_heavy(
    command: tuple[str, ...], small_runs: tuple[Path, Path], tmp_path: Path
) -> None:
    paths = {"RUN": small_runs[0], "OTHER": small_runs[1], "TO": tmp_path / "to", "TO.html": tmp_path / "to.html"}
    arguments = [str(paths.get(word, word)) for word in command]
    loaded = loaded_by(
        "from typer.testing import CliRunner; from raydense.cli import app\n"
        f"result = CliRunner().invoke(app, {arguments})\n"
        "assert result.exit_code == 0, result.output"
    )
    assert not loaded & (HEAVY | READING[command])


def test_help_answers_at_once_and_names_the_commands() -> None:
    command = [Path(sys.executable).with_name("raydense"), "--help"]
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - started)
    assert "train" in done.stdout
    assert min(seconds) < 1.5  # under one on a quiet machine
