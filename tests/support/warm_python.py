"""A Python that has imported already what a run needs: its processes are forked from a server that did.

    with start_warm_python() as python:
        subprocess.run([until_warm(python), "-m", "raydense.cli", "train", …])

They are processes like others, with arguments, environment, directory, streams, signals and exit code of their own, and
`sys.executable` is such a Python again: what they start is forked from a server below them, and so are the workers of a
Ray that they start. Ray itself is imported by each; it reads its environment then.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil

CLIENT = Path(__file__).with_name("warm_python_client.py")
REAL = sys.executable
MODULES = (
    "raydense.cli",
    "raydense.api",
    "raydense.wiring.roles",
    "raydense.fleets.local_runner",
    "raydense.training.run",
    "raydense.rewards.clip",
    "learner.gang",
    "tensorboardX",
)


OWN = ("raydense", "actors", "learner")
PATH, NOWHERE = list[str](), -1  # of a server: where modules are looked for, and a stream that leads nowhere


@contextmanager
def start_warm_python() -> Iterator[Path]:
    """The executable, which is still to get warm, for as long as the block lasts; without Linux, Python itself."""
    if not hasattr(os, "pidfd_open"):
        yield Path(REAL)
        return
    # /tmp is short, as the path of a socket must be
    with tempfile.TemporaryDirectory(prefix="warm-", dir="/tmp", ignore_cleanup_errors=True) as root:
        directory = make_home(Path(root))
        with subprocess.Popen([REAL, __file__, directory], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL):
            yield directory / "python"


def until_warm(python: Path) -> Path:
    """The executable, as soon as its server has imported everything."""
    deadline = time.monotonic() + 120
    while python != Path(REAL) and not python.with_name("socket").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return python


def process_of(client: subprocess.Popen[Any]) -> int:
    """The forked process that a started one stands in for."""
    python = Path(client.args[0])  # type: ignore[index]
    if python == Path(REAL):
        return client.pid
    file = python.with_name(f"{client.pid}.pid")
    while not (file.exists() and file.read_text()):
        assert client.poll() is None
        time.sleep(0.01)
    return int(file.read_text())


def processes_below(python: Path) -> Iterator[psutil.Process]:
    """This process's descendants, among them the forked ones that the executable's processes stand in for."""
    for child in psutil.Process().children(recursive=True):
        yield child
        file = python.with_name(f"{child.pid}.pid")
        if file.exists() and (number := file.read_text()):
            with suppress(psutil.NoSuchProcess):
                yield psutil.Process(int(number))


def make_home(root: Path, real: str = REAL) -> Path:
    """A server's directory, with the executable and what that has to know. real: Python itself."""
    directory = Path(tempfile.mkdtemp(dir=root))
    (directory / "environment").write_text(json.dumps(dict(os.environ)))
    (directory / "python").write_text(f"#!{real} -IS\n{CLIENT.read_text('utf-8')}")
    (directory / "python").chmod(0o700)
    return directory


class Server:
    """Forks a process for each client, until its owner ends."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(directory / "socket"))
        self._listener.listen(64)
        self._ready = selectors.DefaultSelector()
        self._processes: dict[int, tuple[int, socket.socket]] = {}  # by its pidfd: a process and its client

    def next_process(self, owner: int) -> dict[str, Any]:
        """In every forked process: what it is to be. In the server it does not return.

        owner: a pipe's end that becomes readable as the owner ends.
        """
        for source in (owner, self._listener):
            self._ready.register(source, selectors.EVENT_READ)
        while True:
            for key, _ in self._ready.select():
                if key.fileobj is self._listener:
                    if request := self._fork():
                        os.close(owner)
                        return request
                elif key.fd == owner:
                    shutil.rmtree(self._directory, ignore_errors=True)
                    os._exit(0)
                elif key.data is None:
                    self._ended(key.fd)
                elif self._processes.get(key.data, (0, None))[1] is key.fileobj:  # a client that was killed
                    self._ready.unregister(key.fileobj)
                    signal.pidfd_send_signal(key.data, signal.SIGKILL)

    def _fork(self) -> dict[str, Any] | None:
        client, _ = self._listener.accept()
        size, streams, _, _ = socket.recv_fds(client, 4, 3)
        text = client.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL)
        if not text.endswith(b"}"):  # it was killed meanwhile
            for stream in streams:
                os.close(stream)
            client.close()
            return None
        request = json.loads(text)
        process = os.fork()
        if not process:
            self.close()
            client.close()
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            return dict(request)
        for stream in streams:
            os.close(stream)
        _answer(client, process)
        pidfd = os.pidfd_open(process)
        self._processes[pidfd] = process, client
        self._ready.register(pidfd, selectors.EVENT_READ)
        self._ready.register(client, selectors.EVENT_READ, pidfd)
        return None

    def _ended(self, pidfd: int) -> None:
        process, client = self._processes.pop(pidfd)
        _, status = os.waitpid(process, 0)
        self._ready.unregister(pidfd)
        if client.fileno() in self._ready.get_map():
            self._ready.unregister(client)
            _answer(client, status)
        client.close()
        os.close(pidfd)

    def close(self) -> None:
        """In a process that is not the server."""
        self._ready.close()
        self._listener.close()
        for pidfd, (_, client) in self._processes.items():
            os.close(pidfd)
            client.close()


def _answer(client: socket.socket, number: int) -> None:
    with suppress(OSError):  # it was killed
        client.sendall(number.to_bytes(4, "big"))


def _become(request: dict[str, Any]) -> None:
    """The process that the client was asked for, but for its program."""
    if request["leads"]:
        os.setsid()
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["directory"])
    encoding, _, errors = os.environ.get("PYTHONIOENCODING", "").partition(":")
    text: dict[str, Any] = {"encoding": encoding or "utf-8", "closefd": False}
    sys.__stdin__ = sys.stdin = open(0, errors=errors or None, **text)  # noqa: SIM115
    sys.__stdout__ = sys.stdout = open(1, "w", -1, errors=errors or None, **text)  # noqa: SIM115
    sys.__stderr__ = sys.stderr = open(2, "w", 1, errors="backslashreplace", **text)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked"])


def _run(arguments: list[str]) -> None:
    """As Python's command line."""
    own = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    if arguments[0] == "-c":
        sys.argv, sys.path[:] = ["-c", *arguments[2:]], ["", *own, *PATH]
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(arguments[1], vars(main))
    elif arguments[0] == "-m":
        sys.argv, sys.path[:] = arguments[1:], [os.getcwd(), *own, *PATH]
        sys.modules.pop(arguments[1], None)  # for the server it was a module, not a program
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[:] = arguments, [str(Path(arguments[0]).parent), *own, *PATH]
        runpy.run_path(arguments[0], run_name="__main__")


def _exit_code(arguments: list[str]) -> int:
    try:
        _run(arguments)
    except SystemExit as exit_:
        if isinstance(exit_.code, str):
            print(exit_.code, file=sys.stderr)
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except KeyboardInterrupt:
        traceback.print_exc()
        return -signal.SIGINT
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _end(code: int) -> None:
    """As Python ends, but that it takes nothing apart: that would copy every page that the server shares."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def serve(directory: Path, real: str = REAL) -> None:
    """Ends with the process that started it, and in every forked process as that process's program does."""
    server, owner = Server(directory), os.dup(0)
    print("ready", flush=True)
    while True:
        request = server.next_process(owner)
        _become(request)
        directory = make_home(directory.parent, real)
        server, (owner, own_end) = Server(directory), os.pipe()
        if os.fork():
            break
        os.close(own_end)
        for stream in range(3):
            os.dup2(NOWHERE, stream)
    os.close(owner)
    server.close()
    sys.executable = str(directory / "python")
    _end(_exit_code(request["arguments"]))


def warm_up(*, own: bool = True) -> None:
    """Imports what `serve`'s processes are to have. own: our packages, too; else each imports them for itself."""
    global PATH, NOWHERE
    NOWHERE = os.open(os.devnull, os.O_RDWR)
    PATH = [part for part in sys.path[1:] if part not in os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    for module in MODULES:
        import_module(module)
    assert "ray" not in sys.modules, "it reads its environment as it is imported"
    for module in [] if own else [name for name in sys.modules if name.partition(".")[0] in OWN]:
        del sys.modules[module]
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)  # Arrow has a thread
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    warm_up()
    serve(Path(sys.argv[1]))
