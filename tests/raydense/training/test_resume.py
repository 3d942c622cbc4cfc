"""A run that is cut and continued ends with the bytes of one that was not (the cut is a real SIGKILL)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner
from warm_python import process_of

from raydense.cli import app
from raydense.core.types import averaged_version
from raydense.records.metrics import read_rows

LONG = {
    "stage": {"count": 3, "groups": 6, "steps": 8},
    "checkpoint": {"every_steps": 3, "keep_last": 9},
    "replay": {"segments": True},
    "evaluate": {"every_steps": 6, "prompts": 2, "images_per_prompt": 2, "grid_prompts": 2, "grid_images": 2},
}
Condition = Callable[[Path], bool]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def start(warm_python: Path) -> Start:
    """`raydense train --local`, in a process of its own."""

    def begin(*arguments: str | Path) -> subprocess.Popen[str]:
        command = [warm_python, "-m", "raydense.cli", "train", "--local", *arguments]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    return begin


def train(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["train", "--local", *map(str, arguments)])


def finish(*arguments: str | Path) -> None:
    ended = train(*arguments)
    assert ended.exit_code == 0, ended.output


def shown_in_tensorboard(run: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def rows(run: Path, kind: str) -> int:
    """Complete rows of one kind in the metrics so far."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return sum(json.loads(line)["kind"] == kind for line in lines if line.endswith("\n"))


def trained(steps: int) -> Condition:
    return lambda run: rows(run, "step") >= steps


def cut(start: Start, config: Path, run: Path, reached: Condition) -> int:
    """Starts or continues a run, kills it as soon as the condition holds, and returns its exit code."""
    process = start("--resume", run) if (run / "config.yaml").exists() else start(config, "--out", run)
    deadline = time.monotonic() + 120
    while not reached(run):
        assert process.poll() is None, "the run ended before the moment to cut it"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(process_of(process), signal.SIGKILL)
    process.communicate(timeout=60)
    return process.returncode


def result(run: Path) -> tuple[list[bytes], dict[str, Any]]:
    """What must not depend on cuts: the LoRA, that of the last step beside an average, the metrics and all scores."""
    files = (*sorted(run.glob("lora*/*.safetensors")), run / "metrics.jsonl", run / "scores.json")
    return [file.read_bytes() for file in files], json.loads((run / "summary.json").read_text())["reward"]


@pytest.fixture(scope="module")
def config(small_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "long.yaml"
    path.write_text(yaml.safe_dump({**small_values, **LONG}))
    return path


@pytest.fixture(scope="module")
def undisturbed(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(config, "--out", run)
    return run


CUTS: dict[str, Condition] = {
    "before the first checkpoint": lambda run: (run / "images" / "base.png").exists(),
    "while checkpointing": lambda run: any((run / "checkpoints").glob("stage-*-step-*.partial")),
    "while sampling": lambda run: (run / "segments" / "stage-0001" / "unit-000001.arrow").exists(),
    "while training": trained(13),
    "after an evaluation": lambda run: rows(run, "evaluation") >= 3,
}


def test_a_run_killed_at_every_moment_continues_to_the_same_bytes(
    start: Start, config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    check_cuts(start, CUTS, config, tmp_path / "run", undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("moment", CUTS)
def test_a_run_killed_once_does(moment: str, start: Start, config: Path, undisturbed: Path, tmp_path: Path) -> None:
    """plain: `test_a_run_killed_at_every_moment_continues_to_the_same_bytes`, of all moments in one run."""
    check_cuts(start, [moment], config, tmp_path / "run", undisturbed)


def check_cuts(start: Start, moments: Iterable[str], config: Path, run: Path, undisturbed: Path) -> None:
    for moment in moments:  # in the order in which a run comes by
        assert cut(start, config, run, CUTS[moment]) == -signal.SIGKILL, moment
        assert not (run / "summary.json").exists()
    finish("--resume", run)
    assert result(run) == result(undisturbed)
    assert shown_in_tensorboard(run, "loss") == [
        (row["step"], pytest.approx(row["loss"])) for row in read_rows(run / "metrics.jsonl") if "loss" in row
    ]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param({"ema": 0.8, "ema_rollouts": True}, id="by its average"),
        pytest.param({}, id="without one", marks=pytest.mark.slow),
    ],
)
def overlapped(
    request: pytest.FixtureRequest, small_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A configuration, and its undisturbed run.

    Rolled out by the average, a checkpoint has the averages of two stages beside θ.
    """
    root = tmp_path_factory.mktemp("overlapped")
    values = {**small_values, **LONG, "stage": {**LONG["stage"], "schedule": "overlapped"}}
    values["train"] = {**small_values["train"], **request.param}
    (root / "config.yaml").write_text(yaml.safe_dump(values))
    finish(root / "config.yaml", "--out", root / "run")
    return root / "config.yaml", root / "run"


# Of gradient steps: while the second, the third and no stage is under way beside; of which the plain test takes one.
MOMENTS = [[13], *(pytest.param(steps, marks=pytest.mark.slow) for steps in ([5], [17], [5, 13, 17]))]


@pytest.mark.parametrize("moments", MOMENTS, ids=str)
def test_an_overlapped_run_that_is_killed_continues_to_the_same_bytes(
    moments: list[int], start: Start, overlapped: tuple[Path, Path], tmp_path: Path
) -> None:
    check_overlapped(start, moments, *overlapped, tmp_path / "run")


def check_overlapped(start: Start, moments: Iterable[int], config: Path, undisturbed: Path, run: Path) -> None:
    for steps in moments:
        assert cut(start, config, run, trained(steps)) == -signal.SIGKILL, steps
    finish("--resume", run)
    assert result(run) == result(undisturbed)
    loras = 2 if "ema:" in config.read_text() else 1  # the last step's lies beside the average
    assert len(result(run)[0]) == loras + 2
    stages = [row for row in read_rows(run / "metrics.jsonl") if row["kind"] == "stage"]
    assert [(row["policy/version"], row["policy/staleness"]) for row in stages] == [(0, 0), (0, 1), (8, 1)]


def test_only_the_stages_at_work_lie_on_disk_and_a_checkpoint_knows_them(
    undisturbed: Path, overlapped: tuple[Path, Path]
) -> None:
    def stages(run: Path) -> list[str]:
        return sorted(path.name for path in (run / "segments").iterdir())

    assert stages(undisturbed) == ["stage-0002"]
    assert stages(overlapped[1]) == ["stage-0001", "stage-0002"]  # one trained while the other was collected
    record = json.loads((overlapped[1] / "checkpoints/stage-0001/manifest.json").read_text())["record"]
    version = averaged_version(0) if "ema:" in overlapped[0].read_text() else 0
    assert record["outstanding"] == {"units": [0, 1, 2], "weights_version": version}  # of the second stage
    record = json.loads((undisturbed / "checkpoints/stage-0002/manifest.json").read_text())["record"]
    assert record["outstanding"] == {"units": [], "weights_version": None}
    assert record["segments"] == [f"stage-0001/unit-{unit:06d}.arrow" for unit in range(3)]


def test_a_run_stopped_by_a_signal_says_how_to_continue_and_does(
    start: Start, config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "it's $HOME; #7"
    process = start(config, "--out", run)
    while rows(run, "step") < 10:
        assert process.poll() is None
        time.sleep(0.001)
    process.terminate()
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM
    assert any("-step-" in p.name for p in (run / "checkpoints").iterdir())
    _, hint = said.split("raydense: stopped; continue with: ")
    shown = subprocess.check_output(["bash", "-c", f"printf '%s\\n' {hint}"], text=True).splitlines()
    assert shown == ["raydense", "train", "--resume", str(run)]
    finish("--resume", run)
    assert result(run) == result(undisturbed)


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    shutil.rmtree(run / "lora")
    for made_at_the_end in ("scores.json", "summary.json"):
        (run / made_at_the_end).unlink()
    newest = max((run / "checkpoints").iterdir())
    damaged = newest / "lora.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    ended = train("--resume", run)
    assert f"{damaged}: is missing or damaged" in ended.stdout
    assert "continuing from stage-0002-step-000005" in ended.stdout
    assert result(run) == result(undisturbed)


def test_what_a_run_may_not_change_is_refused_with_the_difference(undisturbed: Path) -> None:
    ended = train("--resume", undisturbed, "--set", "train.lr=0.5", "--set", "stage.count=4")
    assert ended.exit_code == 2
    assert "train.lr: 0.01 -> 0.5" in ended.stderr
    assert "stage.count" not in ended.stderr.split("refused:")[1]
