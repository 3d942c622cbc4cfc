"""The user's own command on a real head with token authentication: submitted, followed, stopped.

no plain twin: takes minutes, a head and a job's environment for each.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from browsing import needs_chromium, open_browser
from ray_pages import RayPages

from raydense.records.status import read_status

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1500)]

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
TOKEN = "0123456789abcdef" * 4
SCORER = """
from pathlib import Path
import actors, numpy as np

def score(images, prompts):
    Path({note!r}).write_text(actors.__file__ + chr(10) + __file__)
    return images.mean(axis=(1, 2, 3)) / 255
"""


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Head:
    """One `ray start --head`, with its own ports and directory."""

    def __init__(self, directory: Path) -> None:
        gcs, dashboard, client, agent, grpc, metrics = _free_ports(6)
        self.directory, self.dashboard = directory, f"http://127.0.0.1:{dashboard}"
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }
        ports = {"port": gcs, "dashboard-port": dashboard, "ray-client-server-port": client,
                 "dashboard-agent-listen-port": agent, "dashboard-agent-grpc-port": grpc,
                 "metrics-export-port": metrics}  # fmt: skip
        options = [f"--{name}={port}" for name, port in ports.items()]
        self._process = subprocess.Popen(
            [BIN / "ray", "start", "--head", "--block", f"--temp-dir={directory}", "--num-cpus=4",
             "--object-store-memory=100000000", "--disable-usage-stats", *options],
            env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def wait_ready(self) -> None:
        deadline = time.monotonic() + 180
        while self.job("list", check=False).returncode:
            assert time.monotonic() < deadline
            time.sleep(1)

    def job(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        verb, *rest = map(str, arguments)
        command = [BIN / "ray", "job", verb, "--address", self.dashboard, *rest]
        return subprocess.run(command, capture_output=True, text=True, env=self.environment, check=check, timeout=900)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)  # `--block` then ends all that it started
        self._process.wait(60)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    directory = Path("/tmp") / f"rdj{os.getpid()}"  # short: the paths of sockets are limited to 107 bytes
    started = Head(directory)
    try:
        started.wait_ready()
        yield started
    finally:
        started.stop()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def project(small_values: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """A working directory: a configuration, the user's own scorer, and perhaps the three packages."""

    def make(with_code: bool, **updates: Any) -> Path:
        project = tmp_path / "project"
        project.mkdir()
        scorer = {"kind": "callable", "name": "bright", "target": "my_scorer:score"}
        values = {**small_values, "reward": {"scorer": scorer}, **updates}
        (project / "config.yaml").write_text(yaml.safe_dump(values))
        (project / "my_scorer.py").write_text(SCORER.format(note=str(tmp_path / "note.txt")))
        if with_code:
            for package in ("raydense", "actors", "learner"):
                shutil.copytree(ROOT / package, project / package, ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copy(ROOT / ".rayignore", project)
            (project / "runs").mkdir()
            (project / "runs" / "large.bin").write_bytes(bytes(600 * 2**20))  # more than Ray uploads
        return project

    return make


@pytest.mark.parametrize("with_code", [False, True], ids=["installed", "by the working directory"])
def test_a_job_runs_to_its_end_and_its_logs_are_followed(
    head: Head, project: Callable[..., Path], tmp_path: Path, with_code: bool
) -> None:
    out, directory = tmp_path / "run", project(with_code)
    entry = ["python", "-m", "raydense.cli"] if with_code else ["raydense"]
    done = head.job("submit", "--working-dir", directory, "--", *entry, "train", "config.yaml", "--out", out)
    assert "stage 2 of 2, learning: 3/3" in done.stdout  # plain lines, followed
    assert "succeeded" in done.stdout
    assert json.loads((out / "summary.json").read_text())["runner"] == "ray"
    actors_file, scorer_file = (tmp_path / "note.txt").read_text().splitlines()
    assert str(head.directory) in scorer_file  # Ray's copy of the working directory, in the sampler
    assert (str(head.directory) in actors_file) is with_code


@needs_chromium
def test_a_jobs_page_says_which_run_it_is_of_what_and_where(
    head: Head, project: Callable[..., Path], tmp_path: Path
) -> None:
    out, asked = tmp_path / "run", ["--metadata-json", '{"asked_by": "me"}']
    options = ["--submission-id", "told", *asked, "--working-dir", project(False)]
    head.job("submit", *options, "--", "raydense", "train", "config.yaml", "--out", out)
    with open_browser(tmp_path / "profile") as browser:
        page = RayPages(browser, head.dashboard.removeprefix("http://"), TOKEN).job("told")
    shown = {"job_name": "small", "config": "config.yaml", "directory": str(out), "asked_by": "me"}
    assert [(key, value) for key, value in shown.items() if f'"{key}": "{value}"' not in page] == []


def test_a_relative_output_is_refused_with_its_exit_code(head: Head, project: Callable[..., Path]) -> None:
    command = ["raydense", "train", "config.yaml", "--out", "runs/x"]
    done = head.job("submit", "--working-dir", project(False), "--", *command, check=False)
    assert done.returncode == 1  # `ray job submit` says only that it failed
    assert "--out=runs/x is relative, but a Ray job works in a copy that Ray deletes" in done.stdout
    assert "exit code 2" in done.stdout + done.stderr


def test_a_stopped_job_leaves_a_run_that_continues(head: Head, project: Callable[..., Path], tmp_path: Path) -> None:
    out, directory = tmp_path / "run", project(False, stage={"count": 2, "groups": 5, "steps": 3000})
    patience = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}})  # Ray's own 3 s may be too short to save
    options = ["--submission-id", "long", "--no-wait", "--working-dir", directory, "--runtime-env-json", patience]
    head.job("submit", *options, "--", "raydense", "train", "config.yaml", "--out", out)
    deadline = time.monotonic() + 600
    while not (out / "metrics.jsonl").exists() or '"kind": "step"' not in (out / "metrics.jsonl").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.5)
    head.job("stop", "long")
    logs = head.job("logs", "long").stdout
    assert "stopping after this step or unit" in logs
    assert "continue with: raydense train --resume" in logs
    status = read_status(out)
    assert (status["state"], status["progress"]["phase"]) == ("unfinished", "training")
    assert status["checkpoints"][-1]["complete"]
    saved = status["checkpoints"][-1]["name"]
    assert "-step-" in saved  # written when the signal came

    options[1] = "again"
    head.job("submit", *options, "--", "raydense", "train", "--resume", out)
    while f"continuing from {saved}" not in (logs := head.job("logs", "again").stdout):
        assert time.monotonic() < deadline, logs
        time.sleep(1)
    head.job("stop", "again")
