"""What a configuration, a directory, a URI or a cluster may not do to the user; see deploy/SECURITY.md."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from typer.testing import CliRunner

from raydense.cli import app
from raydense.config import Config
from raydense.fleets.ray_cluster import _authentication_mode, _warn_if_open
from raydense.records.mirror import without_secret
from raydense.records.run_dir import RunDirectory

BIN = Path(sys.executable).parent


@pytest.mark.parametrize("name", ["../../etc/cron.d/x", "a/b", "..", ".hidden", "a\\b", "a\nb", "", "x" * 101])
def test_a_name_that_leaves_the_run_directory_is_refused(name: str) -> None:
    result = CliRunner().invoke(app, ["train", "--set", f"name={json.dumps(name)}", "--dry-run"])
    assert result.exit_code == 2
    assert "becomes part of a file's name; give 1 to 100 characters without /" in result.stderr


def test_a_directory_that_was_open_to_all_is_closed_to_others(
    small_config: Callable[..., Config], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o777)
    RunDirectory.create(tmp_path / "run", small_config())
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o770  # the user's group, if the user gave it rights


def test_a_new_directory_is_the_users_own(small_config: Callable[..., Config], tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "run", small_config())
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://AKIA:secret@bucket/run", "s3://***@bucket/run"),
        ("gs://token@bucket/a@b", "gs://***@bucket/a@b"),
        ("s3://bucket/run@1", "s3://bucket/run@1"),
    ],
)
def test_a_uri_is_shown_without_its_keys(uri: str, shown: str) -> None:
    assert without_secret(uri) == shown


def test_no_error_shows_the_keys_of_a_uri() -> None:
    result = CliRunner().invoke(app, ["train", "--out", "nosuch://AKIA:secret@bucket/run"])
    assert result.exit_code == 2
    assert "--out=nosuch://***@bucket/run cannot be reached" in result.stderr
    assert "secret" not in result.output + result.stderr


@pytest.mark.parametrize(("named", "imported"), [([], False), (["reward.scorer.target=planted:score"], True)])
def test_a_users_module_is_imported_only_if_the_configuration_names_it(
    named: list[str], imported: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planted.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('ran').touch()\ndef score(images, prompts): return []\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    kind = ["reward.scorer={kind: callable, name: planted, target: 'planted:score'}"] if named else []
    sets = [argument for value in [*kind, *named] for argument in ("--set", value)]
    done = CliRunner().invoke(app, ["train", "--dry-run", *sets])
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "ran").exists() is imported
    assert ("planted" in sys.modules) is imported
    sys.modules.pop("planted", None)


@pytest.fixture
def dashboard() -> Iterator[Callable[[str], str]]:
    """A server that answers as a Ray dashboard does: dashboard("token") → its HOST:PORT."""
    servers: list[HTTPServer] = []

    def start(mode: str) -> str:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps({"authentication_mode": mode}).encode())

            def log_message(self, *_: object) -> None:
                pass

        servers.append(HTTPServer(("127.0.0.1", 0), Answer))
        Thread(target=servers[-1].serve_forever, args=(0.02,), daemon=True).start()
        return f"127.0.0.1:{servers[-1].server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()


@pytest.mark.parametrize("mode", ["token", "disabled"])
def test_a_cluster_is_asked_how_it_is_closed(dashboard: Callable[[str], str], mode: str) -> None:
    assert _authentication_mode(dashboard(mode)) == mode


@pytest.mark.parametrize(("own", "assumed"), [("token", "token"), (None, "disabled")])
def test_where_no_dashboard_answers_our_own_setting_counts(
    own: str | None, assumed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if own is None:
        monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    else:
        monkeypatch.setenv("RAY_AUTH_MODE", own)
    assert _authentication_mode("127.0.0.1:1") == assumed


@pytest.mark.parametrize(("mode", "warned"), [("token", False), ("disabled", True)])
def test_an_open_cluster_is_warned_of(
    dashboard: Callable[[str], str], mode: str, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    _warn_if_open("10.0.0.1:6379", dashboard(mode))
    said = capsys.readouterr().err
    assert said.startswith("raydense: WARNING: the Ray cluster at 10.0.0.1:6379 has no token auth") is warned
    assert said.count("\n") == int(warned)


@pytest.mark.slow
@pytest.mark.ray
def test_joining_an_open_cluster_is_warned_of(warm_python: Path) -> None:
    """plain: `test_an_open_cluster_is_warned_of`, without joining it."""
    directory = Path("/tmp") / f"rdo{os.getpid()}"  # short: the paths of sockets are limited to 107 bytes
    sockets = [socket.socket() for _ in range(6)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    gcs, dashboard, client, agent, grpc, metrics = (s.getsockname()[1] for s in sockets)
    for s in sockets:
        s.close()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"RAY_AUTH_MODE": "disabled"}
    head = subprocess.Popen(
        [BIN / "ray", "start", "--head", "--block", f"--temp-dir={directory}", "--num-cpus=1",
         "--object-store-memory=100000000", "--disable-usage-stats", f"--port={gcs}", f"--dashboard-port={dashboard}",
         f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}",
         f"--dashboard-agent-grpc-port={grpc}", f"--metrics-export-port={metrics}"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    code = (
        "import time\n"
        "from raydense.config import ConfigError\n"
        "from raydense.fleets.ray_cluster import ray_session\n"
        "for _ in range(120):\n"
        "    try:\n"
        "        with ray_session(): break\n"
        "    except (ConfigError, RuntimeError): time.sleep(0.5)\n"
    )
    try:
        done = subprocess.run([warm_python, "-c", code], env={**environment, "RAY_ADDRESS": f"127.0.0.1:{gcs}"},
                              capture_output=True, text=True, timeout=180)  # fmt: skip
    finally:
        head.terminate()  # `--block` then ends all that it started
        head.wait(60)
        shutil.rmtree(directory, ignore_errors=True)
    assert f"WARNING: the Ray cluster at 127.0.0.1:{gcs} has no token authentication" in done.stderr
