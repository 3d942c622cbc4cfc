"""What is shown: text as it was written, on outputs that cannot encode it, and in pipes that nobody reads any more."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from rich.table import Table

from raydense.core.terminal import IN_A_LOG, open_console

TEXTS = (
    "[cat:dog:0.5]", "score[red]v2", ":cat: :dog:", "[/]", "[bold]x[/bold]", "\\[x]", "[link=x]y[/link]", "@x", "#7",
    "a *b* _c_ `d`", "{x} %s $a$ $b", "<b>&amp;", "ß ± x̂0 猫 🐈",
)  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_a_users_text_is_shown_as_it_is(text: str) -> None:
    file = io.StringIO()
    console = open_console(file=file, width=80)
    console.print(text)
    assert file.getvalue() == f"{text}\n"
    table = Table(text, title=text)
    table.add_row(text)
    console.print(table)
    assert file.getvalue().count(text) == 4  # the line, title, head and cell


@pytest.mark.parametrize(
    ("columns", "terminal", "lines"),
    [(None, False, 1), ("", False, 1), ("0", False, 1), ("60", False, 3), ("60", True, 3)],
)
def test_a_table_in_a_log_is_not_folded_to_a_terminals_width(
    columns: str | None, terminal: bool, lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "isatty", lambda descriptor: terminal and descriptor == 2)
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    file, table = io.StringIO(), Table("setting", show_header=False)
    table.add_column(overflow="fold")
    table.add_row("a", "b" * 150)
    open_console(file=file).print(table)
    assert sum("b" in line for line in file.getvalue().splitlines()) == lines


def test_a_pipe_that_ends_on_a_terminal_is_as_wide_as_rich_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(os, "isatty", lambda descriptor: descriptor == 2)
    assert open_console(file=io.StringIO()).width < IN_A_LOG


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("utf-8", "ß 猫 \\udcff\n"), ("latin-1", "ß \\u732b \\udcff\n"), ("ascii", "\\xdf \\u732b \\udcff\n")],
)
def test_what_an_output_cannot_encode_is_escaped(encoding: str, shown: str) -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    open_console(file=file).print("ß 猫 \udcff")
    file.seek(0)
    assert file.read() == shown


def start(code: str, environment: Mapping[str, str], **streams: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", f"from raydense.core.terminal import *; guard_output(); import sys; {code}"]
    return subprocess.Popen(command, env={**os.environ, **environment}, **streams)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_work_goes_on_when_nobody_reads_any_more(tmp_path: Path, unbuffered: str) -> None:
    code = f"""
[print(line, 'x' * 10**5) for line in range(99)]; print('ü', file=sys.stderr); open_console().print('y' * 10**5)
open({str(tmp_path / "done")!r}, 'w').close()"""
    process = start(code, {"PYTHONUNBUFFERED": unbuffered}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.read(3) == b"0 x"
    process.stdout.close()
    assert process.stderr.read().decode() == "ü\n"
    assert process.wait(60) == 0
    assert (tmp_path / "done").exists()


def test_a_closed_error_stream_is_no_error() -> None:
    reader, writer = os.pipe()
    process = start("print('x' * 10**5, file=sys.stderr); print('done')", {}, stdout=subprocess.PIPE, stderr=writer)
    os.close(writer)
    os.close(reader)
    assert process.communicate(timeout=60)[0] == b"done\n"
    assert process.returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_is_still_an_error() -> None:
    with open("/dev/full", "wb") as full:
        code = """
try: print('x', flush=True)
except OSError as error: print(error.strerror, file=sys.stderr); sys.exit(1)"""
        process = start(code, {}, stdout=full.fileno(), stderr=subprocess.PIPE)
        _, said = process.communicate(timeout=60)
    assert said.decode() == f"{os.strerror(errno.ENOSPC)}\n"  # and no traceback of what is left in the buffer
    assert process.returncode == 1


def test_nothing_is_guarded_where_there_is_no_stream() -> None:
    code = "import sys; sys.stdout = None; from raydense.core.terminal import guard_output; guard_output(); print('x')"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout == b""
