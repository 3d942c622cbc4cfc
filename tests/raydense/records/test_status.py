"""What `raydense status` reads from a run directory, finished or cut anywhere."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from raydense.cli import app
from raydense.records.status import read_status


@pytest.fixture(scope="module")
def finished(small_runs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("status") / "runs" / "small"
    return Path(shutil.copytree(small_runs[0], root))


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def keep_rows(file: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if wanted(json.loads(line))))


def test_a_finished_run(finished: Path) -> None:
    status = read_status(finished)
    assert status["state"] == "finished"
    assert status["progress"] == {"stage": 2, "stages": 2, "phase": "trained", "units": 3, "units_a_stage": 3,
                                  "steps": 6, "steps_total": 6}  # fmt: skip
    assert len(status["rewards"]) == 2
    assert status["fleet"]["units_by_sampler"] == {"local": 3}
    assert status["ledger"][-1]["finished"] == status["ledger"][-1]["issued"] == 3
    assert status["checkpoints"][-1] == {"name": "stage-0002", "complete": True}


def test_a_run_that_was_cut_while_training(copy: Path) -> None:
    (copy / "summary.json").unlink()
    keep_rows(copy / "metrics.jsonl", lambda row: row["kind"] != "step" or row["step"] <= 4)
    status = read_status(copy)
    assert status["state"] == "unfinished"
    assert (status["progress"]["stage"], status["progress"]["phase"], status["progress"]["steps"]) == (2, "training", 4)


def test_a_run_that_was_cut_while_sampling(copy: Path) -> None:
    (copy / "summary.json").unlink()
    keep_rows(copy / "metrics.jsonl", lambda row: row.get("stage", 0) < 1)
    keep_rows(copy / "telemetry.jsonl", lambda row: row["stage"] < 1 or row.get("unit") == 0)
    progress = read_status(copy)["progress"]
    assert (progress["stage"], progress["phase"], progress["units"], progress["steps"]) == (2, "sampling", 1, 3)


def test_a_run_that_has_only_begun(copy: Path) -> None:
    for name in ("summary.json", "metrics.jsonl", "telemetry.jsonl"):
        (copy / name).unlink()
    shutil.rmtree(copy / "checkpoints")
    status = read_status(copy)
    assert (status["progress"]["stage"], status["progress"]["phase"], status["checkpoints"]) == (1, "sampling", [])
    assert "nothing sampled yet" in CliRunner().invoke(app, ["status", str(copy)]).stdout


def test_the_command_that_continues_is_one_for_a_shell(copy: Path) -> None:
    (copy / "summary.json").unlink()
    odd = copy.rename(copy.with_name("it's a run; #7"))
    shown = CliRunner(env={"COLUMNS": "400"}).invoke(app, ["status", str(odd)]).stdout
    assert shlex.join(["raydense", "train", "--resume", str(odd)]) in shown


def test_half_a_row_and_half_a_checkpoint(copy: Path) -> None:
    (copy / "metrics.jsonl").open("a").write('{"kind": "st')
    (copy / "checkpoints" / "stage-0003.partial").mkdir()
    status = read_status(copy)
    assert status["progress"]["steps"] == 6
    assert status["checkpoints"][-1] == {"name": "stage-0003.partial", "complete": False}


def test_the_latest_run_is_the_default(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished.parents[1])
    result = CliRunner().invoke(app, ["status", "--json"])
    assert json.loads(result.stdout)["name"] == "small"
    shown = CliRunner().invoke(app, ["status"]).stdout
    for fact in ("finished, last written", "2 of 2, trained", "local (3 units)", "stage-0002"):
        assert fact in shown


def test_what_is_no_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, said in (([], "there is no run under"), (["x"], "x holds no config.yaml; give the directory of a")):
        result = CliRunner().invoke(app, ["status", *arguments])
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert said in result.stderr


def test_it_does_not_wait_for_torch() -> None:
    code = "import sys, raydense.records.status; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"
