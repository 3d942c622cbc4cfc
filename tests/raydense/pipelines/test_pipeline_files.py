"""A pipeline's files: of a directory, of the hub's cache and of a hub, with and without those that may be absent."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from raydense.config import ConfigError
from raydense.pipelines.pipeline_files import config_file, read_pipeline

INDEX, TOKENIZER = "model_index.json", "tokenizer/tokenizer_config.json"
PARTS = ("scheduler", "unet", "vae", "text_encoder", "tokenizer")
Serve = Callable[[Path], list[str]]


def test_a_directory_is_read_whole(pipeline_dir: Path) -> None:
    found = read_pipeline(str(pipeline_dir), None, fetch=False)
    assert found.model == str(pipeline_dir)
    assert found.index == json.loads((pipeline_dir / INDEX).read_text("utf-8"))
    assert found.parts == {part: json.loads((pipeline_dir / config_file(part)).read_text("utf-8")) for part in PARTS}
    assert found.kind == "StableDiffusionPipeline"
    assert found.notes == ()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Serves a pipeline's files as a hub does, to a client with an empty cache; the list is of what was asked for."""
    root, asked = [tmp_path], list[str]()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            name = self.path.partition("/resolve/main/")[2]
            file, known = root[0] / name, not name or (root[0] / name).is_file()
            content = file.read_bytes() if name and known else b""
            if name and body:
                asked.append(name)
            self.send_response(200 if known else 404)
            self.send_header("X-Repo-Commit", "a" * 40)
            self.send_header("ETag", hashlib.sha1(name.encode()).hexdigest())
            self.send_header("Content-Length", str(len(content)))
            if not known:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
            self.wfile.write(content if body else b"")

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    def serve(directory: Path) -> list[str]:
        root[0] = directory
        return asked

    yield serve
    server.shutdown()
    thread.join()
    server.server_close()


def without(pipeline: Path, to: Path, *names: str) -> Path:
    shutil.copytree(pipeline, to)
    for name in names:
        (to / name).unlink()
    return to


def test_a_hub_is_asked_once_for_what_the_cache_lacks(pipeline_dir: Path, hub: Serve) -> None:
    asked = hub(pipeline_dir)
    assert read_pipeline("owner/name", None, fetch=False)["unet"] is None
    found = read_pipeline("owner/name", None, fetch=True)
    assert found["unet"] == json.loads((pipeline_dir / "unet/config.json").read_text("utf-8"))
    assert found.index is not None
    assert sorted(asked) == sorted([*map(config_file, PARTS), INDEX])
    assert read_pipeline("owner/name", None, fetch=True) == found
    assert read_pipeline("owner/name", None, fetch=False) == found
    assert len(asked) == 6


def test_what_a_repository_may_lack(pipeline_dir: Path, tmp_path: Path, hub: Serve) -> None:
    asked = hub(without(pipeline_dir, tmp_path / "model", INDEX, TOKENIZER))
    found = read_pipeline("owner/name", None, fetch=True)
    assert (found.index, found["tokenizer"]) == (None, None)
    assert found["vae"] is not None
    asked.clear()
    assert read_pipeline("owner/name", None, fetch=True) == found
    assert asked == []  # a cache that an earlier version filled needs no hub


def test_what_it_may_not_is_said(pipeline_dir: Path, tmp_path: Path, hub: Serve) -> None:
    hub(without(pipeline_dir, tmp_path / "model", "vae/config.json"))
    with pytest.raises(
        ConfigError, match=r"policy.model=owner/name is no directory here, and cannot be had from the hub"
    ):
        read_pipeline("owner/name", None, fetch=True)


def test_another_family_at_a_hub_is_named_before_its_parts_are_missed(tmp_path: Path, hub: Serve) -> None:
    (tmp_path / "flux").mkdir()
    (tmp_path / "flux" / INDEX).write_text(json.dumps({"_class_name": "KandinskyPipeline"}))
    hub(tmp_path / "flux")
    with pytest.raises(ConfigError, match=r"owner/name is a KandinskyPipeline by its model_index.json; known: Stabl"):
        read_pipeline("owner/name", None, fetch=True)
