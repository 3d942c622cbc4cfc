"""A server that scores pictures, as the HTTP scorer asks one."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image


class Server(ThreadingHTTPServer):
    """Scores a picture by its mean byte plus its prompt's length; `failures` are served first."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[dict[str, str], Any]] = []
        self.failures: list[Callable[[BaseHTTPRequestHandler], None]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/score"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((dict(self.headers), body))
        if self.server.failures:
            self.server.failures.pop(0)(self)
            return
        pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in body["images"]]
        answer(self, [float(p.mean()) + len(q) for p, q in zip(pictures, body["prompts"], strict=True)])

    def log_message(self, *_: Any) -> None: ...


def answer(handler: BaseHTTPRequestHandler, content: Any, status: int = 200, **headers: str) -> None:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(text)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(text)


@contextmanager
def serving() -> Iterator[Server]:
    running = Server()
    threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()
