"""The wheel: what is in it, and that it runs in an empty directory with nothing of the repository beside it."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from typer.main import get_command

from raydense.cli import app

ROOT = Path(__file__).resolve().parents[2]
SHORT = ("stage.count=1", "stage.groups=8", "stage.steps=1", "train.batch_groups=8", "evaluate.prompts=2",
         "evaluate.images_per_prompt=2")  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("raydense", "actors", "learner", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", target, source]
    subprocess.run(command, check=True)
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that sees the wheel's files before all others."""
    target = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return {**os.environ, "PYTHONPATH": str(target), "COLUMNS": "200"}


def raydense(environment: dict[str, str], where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "raydense.cli", *arguments]
    return subprocess.run(command, env=environment, cwd=where, capture_output=True, text=True, check=False)


def test_it_holds_the_packages_and_the_weights_and_not_the_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"raydense", "actors", "learner"}
    unet = "tiny/weights/pipeline/unet/diffusion_pytorch_model.safetensors"
    transformer = "tiny/weights/flow/transformer/diffusion_pytorch_model.safetensors"
    for needed in ("presets/tiny.yaml", "presets/multi-prompt.yaml", "tiny/prompts/train.txt", unet, transformer):
        assert f"raydense/{needed}" in names
    tracked = subprocess.check_output(["git", "ls-files", "raydense", "actors", "learner"], cwd=ROOT, text=True)
    missing = {name for name in tracked.splitlines() if (ROOT / name).exists()} - set(names)
    assert {name for name in missing if not name.endswith((".md", ".png", ".svg"))} == set()
    assert [name for name in names if name.endswith(".md")] == []  # guides link what lies in the repository alone
    assert wheel.stat().st_size < 13e6


@pytest.mark.slow
def test_it_runs_in_an_empty_directory(installed: dict[str, str], tmp_path: Path) -> None:
    """plain: `test_it_holds_the_packages_and_the_weights_and_not_the_tests`, of files alone."""
    settings = [argument for setting in SHORT for argument in ("--set", setting)]
    done = raydense(installed, tmp_path, "train", "--local", "--out", "run", *settings)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["name"] == "tiny"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_it_refuses_where_another_package_took_a_name(installed: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "learner.py").write_text("")  # the current directory comes before installed packages
    done = raydense(installed, tmp_path, "--help")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "raydense: package 'learner' is " in done.stderr


@pytest.mark.parametrize("argument", ["--help", "config"])
def test_what_needs_no_model_needs_less_than_a_second_of_work(argument: str) -> None:
    command = [Path(sys.executable).with_name("raydense"), argument]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime) < 1


@pytest.mark.parametrize("name", sorted(get_command(app).commands))  # type: ignore[attr-defined]
def test_the_help_of_every_command_has_an_example(name: str) -> None:
    command = get_command(app).commands[name]  # type: ignore[attr-defined]
    assert f"Example: `raydense {name} " in command.epilog
    assert command.help


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete(shell: str) -> None:
    command = [Path(sys.executable).with_name("raydense")]
    words = {"COMP_WORDS": "raydense st", "COMP_CWORD": "1", "_TYPER_COMPLETE_ARGS": "raydense st",
             "_TYPER_COMPLETE_FISH_ACTION": "get-args"}  # fmt: skip
    environment = {**os.environ, **words, "_RAYDENSE_COMPLETE": f"complete_{shell}"}
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout
    assert "status" in shown
    assert "train" not in shown
