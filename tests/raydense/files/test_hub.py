"""A hub that does not answer is found out within seconds, however it does not."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable

import pytest

from raydense.files import hub


def silent(connection: socket.socket) -> None:
    time.sleep(5)


def endless(connection: socket.socket) -> None:
    """A byte now and then: no single read takes too long."""
    with contextlib.suppress(OSError):
        connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        while True:
            connection.sendall(b"x")
            time.sleep(0.05)


@pytest.mark.parametrize("behaviour", [silent, endless])
def test_a_server_that_does_not_answer(
    behaviour: Callable[[socket.socket], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: behaviour(server.accept()[0]), daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(hub, "PROBE_S", 0.5)
        started = time.monotonic()
        with pytest.raises(ConnectionError, match=r"^tried http://127\.0\.0\.1:\d+: .*; nor is it in "):
            hub.probe_hub()
        assert time.monotonic() - started < 4


def test_a_server_that_is_not_there_or_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match=r"tried http://127\.0\.0\.1:9: "):
        hub.probe_hub()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection = server.accept()[0]
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        hub.probe_hub()  # of the whole hub: whether it has a model, the download says
