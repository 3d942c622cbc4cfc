"""A run on an empty cluster, with Ray's autoscaler and `ray_cluster.yaml`'s node types: nodes come with demand."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
FAKE_HEAD = "f" * 51 + "00000"  # the node that Ray's fake provider takes for the head


def _cluster_config() -> dict[str, Any]:
    """The project's node types, on Ray's provider that starts processes instead of machines."""
    ours = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())["available_node_types"]
    names = {"head": "ray.head.default"}
    types = {names.get(name, name): {**kind, "node_config": {}} for name, kind in ours.items()}
    types["ray.head.default"]["max_workers"] = 0
    provider = {"type": "fake_multinode", "use_node_id_as_ip": True, "disable_node_updaters": True,
                "disable_launch_config_check": True, "launch_multiple": True, "head_node_id": FAKE_HEAD}  # fmt: skip
    return {"cluster_name": "fake", "max_workers": 9, "provider": provider, "available_node_types": types,
            "head_node_type": "ray.head.default", "upscaling_speed": 8}  # fmt: skip


def test_samplers_without_a_node_make_nodes_come(small_values: dict[str, Any], tmp_path: Path) -> None:
    directory = Path("/tmp") / f"rda{os.getpid()}"  # short: the paths of sockets are limited to 107 bytes
    sockets = [socket.socket() for _ in range(2)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    gcs, dashboard = (s.getsockname()[1] for s in sockets)
    for s in sockets:
        s.close()
    (tmp_path / "cluster.yaml").write_text(json.dumps(_cluster_config()))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(small_values))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD,
    }
    log = (tmp_path / "head.log").open("wb")
    head = subprocess.Popen(
        [BIN / "ray", "start", "--head", "--block", f"--temp-dir={directory}", "--num-cpus=0", f"--port={gcs}",
         f"--dashboard-port={dashboard}", "--object-store-memory=100000000", "--disable-usage-stats",
         f"--autoscaling-config={tmp_path / 'cluster.yaml'}"],
        env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    settings = ["samplers.autoscale=true", "samplers.max=2", "samplers.min=2", "samplers.num_gpus=1",
                "learner.num_gpus=1", "samplers.labels.raydense/role=sampler", "stage.count=1"]  # fmt: skip
    sets = [argument for setting in settings for argument in ("--set", setting)]
    command = [BIN / "raydense", "train", "config.yaml", "--out", "run", "--log-format", "plain", *sets]
    try:
        deadline = time.monotonic() + 120
        while socket.socket().connect_ex(("127.0.0.1", gcs)):
            assert time.monotonic() < deadline
            time.sleep(1)
        time.sleep(5)  # the autoscaler's own start
        done = subprocess.run(command, cwd=tmp_path, env={**environment, "RAY_ADDRESS": f"127.0.0.1:{gcs}"},
                              capture_output=True, text=True, timeout=400)  # fmt: skip
        status = subprocess.run([BIN / "ray", "status", f"--address=127.0.0.1:{gcs}"], env=environment,
                                capture_output=True, text=True, timeout=60).stdout  # fmt: skip
    finally:
        head.send_signal(signal.SIGTERM)  # `--block` then ends all that it started
        head.wait(60)
        shutil.rmtree(directory, ignore_errors=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:] + (tmp_path / "head.log").read_text()[-3000:]
    assert "WARNING" not in done.stderr  # it has tokens
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["runner"] == "ray"
    assert "1 learner" in status
    assert "2 sampler" in status
