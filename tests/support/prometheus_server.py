"""A Prometheus over a run's Ray, by the configuration that we ship."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

SHIPPED = Path(__file__).resolve().parents[2] / "deploy" / "prometheus"
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed (Debian: apt-get install prometheus)"
)


@dataclass
class Prometheus:
    """A server that scrapes the run."""

    process: subprocess.Popen[bytes]
    url: str
    started: float

    def query(self, expression: str) -> list[Mapping[str, Any]]:
        """Every series that the expression had during the run."""
        expression = expression.replace("$run", ".*").replace("$__rate_interval", "15s")
        parameters = {"query": expression, "start": self.started, "end": time.time(), "step": "1s"}
        with urlopen(f"{self.url}/api/v1/query_range?{urlencode(parameters)}") as answer:
            result: list[Mapping[str, Any]] = json.load(answer)["data"]["result"]
        return result

    def has(self, *expressions: str) -> bool:
        try:
            return all(map(self.query, expressions))
        except OSError:  # it is starting
            return False


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def start_prometheus(directory: Path, ray_directory: Path) -> Prometheus:
    """The shipped configuration, but for the discovery file's directory and the interval."""
    config = yaml.safe_load((SHIPPED / "prometheus.yml").read_text("utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (discovery,) = config["scrape_configs"][0]["file_sd_configs"]
    discovery["files"] = [f.replace("/tmp/ray/", f"{ray_directory}/ray/") for f in discovery["files"]]
    discovery["refresh_interval"] = "1s"
    shutil.copy(SHIPPED / "alerts.yml", directory)
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{_free_port()}"
    command = ["prometheus", f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data",
               f"--web.listen-address={address}", "--log.level=error"]  # fmt: skip
    started = time.time()
    return Prometheus(subprocess.Popen(command, cwd=directory), f"http://{address}", started)
