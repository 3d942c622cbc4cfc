"""`support/warm_python.py`: its processes are like others, and have only their imports behind them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from warm_python import process_of


def output(python: Path, code: str, *arguments: str, **options: Any) -> str:
    shown: str = subprocess.check_output([python, "-c", code, *arguments], text=True, **options)
    return shown


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print(*sys.argv)", "-c a b"),
        ("print(os.getcwd(), sys.path[0] == '')", "{tmp} True"),
        ("print(os.environ['OWN'], os.environ.get('PATH'))", "1 None"),
        ("print(sys.stdin.read())", "input"),
        ("print(sys.stdout.encoding, sys.stdout.errors, sys.stderr.errors)", "ascii strict backslashreplace"),
        ("print('torch' in sys.modules, 'ray' in sys.modules)", "True False"),
        ("sys.stdout.write('at the end'); import atexit; atexit.register(lambda: print('.'))", "at the end."),
        ("os.system(f'{sys.executable} -c \"import sys; print(len(sys.modules) > 1000)\"')", "True"),
    ],
)
def test_a_process_is_what_it_was_asked_for(warm_python: Path, tmp_path: Path, code: str, said: str) -> None:
    environment = {**os.environ, "OWN": "1", "PYTHONIOENCODING": "ascii"}
    del environment["PATH"]
    code = f"import os, sys; {code}"
    shown = output(warm_python, code, "a", "b", env=environment, cwd=tmp_path, input="input")
    assert shown.rstrip("\n") == said.format(tmp=tmp_path)


@pytest.mark.parametrize(
    ("code", "ends", "said"),
    [
        ("", 0, ""),
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('no')", 1, "no"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
        ("raise KeyboardInterrupt", -2, "KeyboardInterrupt"),
    ],
)
def test_it_ends_as_others_do(warm_python: Path, code: str, ends: int, said: str) -> None:
    done = subprocess.run([warm_python, "-c", code], stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr.splitlines()[-1:]) == (ends, [said] if said else [])


@pytest.mark.parametrize(("name", "forked"), [("HF_HOME", False), ("PYTHONUTF8", False), ("RAY_ADDRESS", True)])
def test_what_is_read_at_loading_is_read_again(warm_python: Path, name: str, forked: bool) -> None:
    assert (
        output(warm_python, "import sys; print('torch' in sys.modules)", env={**os.environ, name: "1"}) == f"{forked}\n"
    )


def waiting(python: Path, **options: Any) -> subprocess.Popen[bytes]:
    """A process that waits for a signal."""
    command = [python, "-c", "import time; print(flush=True)\nwhile True: time.sleep(0.01)"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **options)
    assert process.stdout and process.stdout.readline()
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_reaches_it(warm_python: Path, number: signal.Signals) -> None:
    client = waiting(warm_python)
    own = process_of(client)
    client.send_signal(number)
    assert client.wait(60) == -number
    deadline = time.monotonic() + 60
    while Path(f"/proc/{own}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_ctrl_c_reaches_the_whole_group(warm_python: Path) -> None:
    client = waiting(warm_python, start_new_session=True)
    assert os.getpgid(process_of(client)) == process_of(client)
    os.killpg(client.pid, signal.SIGINT)
    assert client.wait(60) == -signal.SIGINT
