"""Where a run's numbers go beside its JSON lines, as TensorBoard and Weights & Biases themselves read them."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import Result
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from raydense.cli import app
from raydense.config import Config
from raydense.records.metrics import read_rows
from raydense.records.run_dir import RunDirectory
from raydense.records.sinks import TensorBoardSink, open_sinks
from raydense.records.telemetry import Arrivals, Meter, RunLog

LORA = "lora/pytorch_lora_weights.safetensors"
KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def config(small_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(yaml.safe_dump(small_values))
    return path


def train(config: Path, out: Path, *settings: str) -> Result:
    overrides = [part for setting in settings for part in ("--set", setting)]
    return CliRunner().invoke(app, ["train", str(config), "--local", "--out", str(out), *overrides])


@pytest.fixture(scope="module")
def run(small_runs: tuple[Path, Path]) -> Path:
    """Of the same configuration."""
    return small_runs[0]


def shown(directory: Path) -> EventAccumulator:
    """What TensorBoard makes of event files."""
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return events


def series(events: EventAccumulator, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(name)]


# -- TensorBoard ----------------------------------------------------------------------------------------------


def test_tensorboard_shows_every_metric_of_a_run_at_its_step(run: Path) -> None:
    events = shown(run / "tensorboard")
    for name, kind in (("loss", "step"), ("log_ratio/clip_fraction", "step"), ("reward/mean", "stage")):
        rows = [row for row in read_rows(run / "metrics.jsonl") if row["kind"] == kind]
        assert series(events, name) == [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows]
    assert [step for step, _ in series(events, "loss")] == [1, 2, 3, 4, 5, 6]
    assert {"phase/sampling_s", "throughput/steps_per_s", "fleet/deaths"} <= set(events.Tags()["scalars"])


def test_tensorboard_has_a_grid_of_the_base_model_and_one_after_each_stage(run: Path) -> None:
    events = shown(run / "tensorboard")
    assert [event.step for event in events.Images("images")] == [0, 3, 6]
    last = events.Images("images")[-1].encoded_image_string
    assert len(last) > 1000
    assert last.startswith(b"\x89PNG")


def test_a_run_that_continues_shows_each_step_once_though_its_last_file_is_torn(tmp_path: Path) -> None:
    first = TensorBoardSink(tmp_path, purge_step=0)
    for step in range(1, 11):
        first.scalars(step, {"loss": float(step)})
    first.close()
    [file] = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-3])  # as SIGKILL may leave it
    again = TensorBoardSink(tmp_path, purge_step=7)  # in the same second, too
    for step in range(7, 13):
        again.scalars(step, {"loss": 10.0 * step})
    again.close()
    assert len(list(tmp_path.iterdir())) == 2
    assert series(shown(tmp_path), "loss") == [(s, float(s)) for s in range(1, 7)] + [
        (s, 10.0 * s) for s in range(7, 13)
    ]


def test_whether_metrics_go_elsewhere_changes_no_byte(run: Path, config: Path, tmp_path: Path) -> None:
    assert train(config, tmp_path / "plain", "telemetry.tensorboard=false").exit_code == 0
    assert not (tmp_path / "plain" / "tensorboard").exists()
    for name in (LORA, "metrics.jsonl", "scores.json", "images/before-after.png"):
        assert (tmp_path / "plain" / name).read_bytes() == (run / name).read_bytes(), name


# -- what fails -----------------------------------------------------------------------------------------------


class BrokenSink:
    """A `MetricSink` whose service is out of reach."""

    def __init__(self, error: Exception) -> None:
        self._error, self.calls = error, 0

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.calls += 1
        raise self._error

    def image(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        raise AssertionError("it failed before")

    def close(self) -> None: ...


def test_a_sink_that_fails_is_said_once_and_left_out(tmp_path: Path) -> None:
    broken, said = BrokenSink(ConnectionError("no route\nto host")), []
    log = RunLog(RunDirectory(tmp_path), 0, [broken, TensorBoardSink(tmp_path / "tensorboard", 0)], said.append)
    log.metrics("step", 0, 1, {"loss": 0.5})
    log.metrics("step", 0, 2, {"loss": 0.25})
    log.image(2, "images", np.zeros((2, 2, 3), np.uint8))
    log.close()
    assert said == ["BrokenSink failed (no route to host); the run goes on without it"]
    assert broken.calls == 1
    assert [row["loss"] for row in read_rows(tmp_path / "metrics.jsonl")] == [0.5, 0.25]
    assert series(shown(tmp_path / "tensorboard"), "loss") == [(1, 0.5), (2, 0.25)]


def test_a_full_disk_is_no_failure_to_outlive(tmp_path: Path) -> None:
    log = RunLog(RunDirectory(tmp_path), 0, [BrokenSink(OSError(errno.ENOSPC, "No space left"))], print)
    with pytest.raises(OSError, match="No space left"):
        log.metrics("step", 0, 1, {"loss": 0.5})


def test_a_sink_that_cannot_be_opened_is_said_and_left_out(small_config: Callable[..., Config], tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("a file where the directory should be")
    said: list[str] = []
    assert open_sinks(small_config(), RunDirectory(tmp_path), 0, said.append) == []
    assert len(said) == 1
    assert said[0].startswith("TensorBoard cannot be opened (")
    assert "File exists" in said[0]


def test_a_rate_is_told_at_most_every_so_often() -> None:
    meter = Meter(every_s=0.05)
    assert meter.add(3) is None
    time.sleep(0.06)
    rate = meter.add(3)
    assert rate is not None
    assert 20 < rate <= 6 / 0.06
    assert meter.add(1) is None


def test_pictures_a_second_are_counted_from_when_sampling_began() -> None:
    seen, unseen = Arrivals(time.perf_counter()), Arrivals()
    assert seen.rate is unseen.rate is None
    for arrivals in (unseen, seen):
        arrivals.add(100)
    assert unseen.rate is None  # it may have taken any time before it came
    time.sleep(0.05)
    for arrivals in (unseen, seen):
        arrivals.add(10)
    assert unseen.rate is not None
    assert seen.rate is not None
    assert 100 < unseen.rate <= 10 / 0.05
    assert 1000 < seen.rate <= 110 / 0.05


def test_an_overlapped_run_says_its_staleness(config: Path, tmp_path: Path) -> None:
    assert train(config, tmp_path / "run", "stage.schedule=overlapped", "stage.count=3").exit_code == 0
    stages = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "stage"]
    assert [row["policy/staleness"] for row in stages] == [0, 1, 1]


# -- Weights & Biases -----------------------------------------------------------------------------------------


def test_an_offline_run_lies_in_the_run_directory_with_its_metrics(run: Path, config: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    assert train(config, tmp_path / "run", "telemetry.wandb=offline", "telemetry.wandb_project=tests").exit_code == 0
    [file] = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    store, logged = DataStore(), []
    store.open_for_scan(str(file))
    while data := store.scan_data():
        record = Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            logged.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    losses = [(row["step"], row["loss"]) for row in read_rows(tmp_path / "run" / "metrics.jsonl") if "loss" in row]
    assert [(row["step"], row["loss"]) for row in logged if "loss" in row] == losses
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_a_server_out_of_reach_does_not_stop_a_run_and_the_key_is_nowhere(config: Path, tmp_path: Path) -> None:
    """plain: `test_a_sink_that_cannot_be_opened_is_said_and_left_out`; this one waits for 40 s."""
    pytest.importorskip("wandb")
    environment = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    result = subprocess.run(
        [sys.executable, "-m", "raydense.cli", "train", str(config), "--local", "--out", str(tmp_path / "run"),
         "--set", "telemetry.wandb=online"],
        capture_output=True, text=True, env={**os.environ, **environment},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Weights & Biases cannot be opened") == 1
    assert KEY not in result.stdout + result.stderr
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


@pytest.mark.parametrize("missing", ["package", "key"])
def test_what_weights_and_biases_lacks_is_said_before_any_work(
    missing: str, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing == "package":
        monkeypatch.setitem(sys.modules, "wandb", None)
    else:
        pytest.importorskip("wandb")
        monkeypatch.delenv("WANDB_API_KEY", raising=False)
        monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    result = train(config, tmp_path / "run", "telemetry.wandb=online")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert {"package": "pip install 'raydense[wandb]'", "key": "set WANDB_API_KEY"}[missing] in result.stderr
    assert not (tmp_path / "run").exists()
