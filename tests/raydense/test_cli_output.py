"""What the commands print of a user's own words, on a terminal that has only ASCII, into a pipe that nobody reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from raydense.cli import app

NAME, SCORER = "[cat:dog:0.5] ß", "score[red]v2 :cat: $a$ $b"
WIDE = {"COLUMNS": "400"}
Told = tuple[Path, str, str]


@pytest.fixture(scope="module")
def told(warm_python: Path, small_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Told:
    """A run that went on after its reader had left, where only ASCII can be written; and what it had said till then."""
    tmp = tmp_path_factory.mktemp("told")
    values = {**small_values, "name": NAME, "stage": {"count": 1, "groups": 5, "steps": 2}}
    values["reward"] = {"scorer": {**small_values["reward"]["scorer"], "name": SCORER}}
    (tmp / "[odd] :dog:.yaml").write_text(yaml.safe_dump(values))
    command = [warm_python, "-m", "raydense.cli", "train", "--local", tmp / "[odd] :dog:.yaml", "--out", tmp / "a b"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert process.stdout is not None and process.stderr is not None
    first = process.stdout.readline().decode("ascii")
    process.stdout.close()
    errors = process.stderr.read().decode("ascii")
    assert process.wait(120) == 0, errors
    return tmp / "a b", first, errors


def test_a_run_ends_well_though_nobody_reads_it(told: Told) -> None:
    root, first, errors = told
    assert first == f"run directory: {root}\n"
    assert errors == ""
    assert json.loads((root / "summary.json").read_text("utf-8"))["name"] == NAME


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["status", "{run}"], [NAME]),
        (["compare", "{run}", "{run}"], [SCORER]),
        (["train", "--dry-run", "{config}"], [NAME]),
        (["train", "{config}", "--set", "sead[red]:cat:=1"], ["sead[red]:cat: is not a setting"]),
        (["train", "{config}", "--out", "{run}"], ["is not empty and is never overwritten"]),
        (["train", "[red]:cat:.yaml"], ["[red]:cat:.yaml: cannot be read"]),
        (["status", "[red]:cat:"], ["[red]:cat: holds no config.yaml"]),
        (["[red]:cat:"], ["No such command '[red]:cat:'"]),
        (["sample", "--base", "x", "--out", "[red]:cat:"], ["[red]:cat:"]),
    ],
)
def test_a_users_words_are_printed_as_they_are(told: Told, arguments: list[str], texts: list[str]) -> None:
    root = told[0]
    paths = {"run": root, "config": root.parent / "[odd] :dog:.yaml"}
    result = CliRunner(env=WIDE).invoke(app, [part.format(**paths) for part in arguments])
    assert all(text in result.output for text in texts), result.output


@pytest.mark.parametrize(("command", "read"), [("status", 1), ("compare", 0), ("report", 0)])
def test_every_command_ends_quietly_in_ascii_with_and_without_a_reader(
    warm_python: Path, told: Told, command: str, read: int
) -> None:
    root = str(told[0])
    arguments = {
        "status": ["status", root],
        "compare": ["compare", root, root],
        "report": ["report", root],
    }[command]
    process = subprocess.Popen(
        [warm_python, "-m", "raydense.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert process.stdout is not None and process.stderr is not None
    if read:
        process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 0


def test_bytes_that_are_no_text_are_refused_before_anything_is_done(tmp_path: Path) -> None:
    for arguments in (["sample", b"a \xff", "--base"], ["train", "--out", b"runs/\xff"]):
        command = [sys.executable, "-m", "raydense.cli", *arguments]
        done = subprocess.run(command, capture_output=True, cwd=tmp_path, check=False)
        assert done.returncode == 2
        assert b"holds \\udcff, a byte that is no utf-8; write it in UTF-8" in done.stderr
        assert done.stderr.count(b"\n") == 1
    assert not list(tmp_path.iterdir())
