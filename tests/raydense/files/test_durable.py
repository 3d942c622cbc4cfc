"""A file has its old content or all of the new one, and a remembered checksum is that of the bytes that are there."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from raydense.files.durable import REMEMBERED_BYTES, SETTLED_S, known_checksum, replacing, write_text

KILLED_HALF_WAY = """
import os, signal, sys
from pathlib import Path
from raydense.files.durable import replacing
with replacing(Path(sys.argv[1])) as partial:
    partial.write_text("half of the ne")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_file_is_replaced(tmp_path: Path) -> None:
    for text in ("old", "new", "Käfer\n"):
        write_text(tmp_path / "file", text)
        assert (tmp_path / "file").read_text("utf-8") == text
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_error_half_way_leaves_the_old_content_alone(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old")
    with pytest.raises(OSError, match="no space"), replacing(tmp_path / "file") as partial:  # noqa: PT012
        partial.write_text("half of the ne")
        raise OSError("no space")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file": "old"}


def test_a_kill_half_way_leaves_the_old_content(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old")
    ended = subprocess.run([sys.executable, "-c", KILLED_HALF_WAY, str(tmp_path / "file")])
    assert ended.returncode == -signal.SIGKILL
    assert (tmp_path / "file").read_text() == "old"
    write_text(tmp_path / "file", "new")  # what the killed one left is in nobody's way
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file": "new"}


# -- checksums ------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "raydense" / "checksums"


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is worth remembering, and was last changed long enough ago."""
    monkeypatch.setattr("raydense.files.durable.SETTLED_S", 0.0)
    path = tmp_path / "large"
    path.write_bytes(b"a" * REMEMBERED_BYTES)
    return path


def test_a_large_file_is_read_once(large: Path, cache: Path) -> None:
    assert known_checksum(large) == sha256(b"a" * REMEMBERED_BYTES)
    (note,) = cache.iterdir()
    stamp, _ = note.read_text().rsplit(maxsplit=1)
    note.write_text(f"{stamp} remembered\n")
    assert known_checksum(large) == "remembered"
    (large.parent / "link").symlink_to(large)
    assert known_checksum(large.parent / "link") == "remembered"


CHANGES: dict[str, Callable[[Path], None]] = {
    "other bytes": lambda path: path.write_bytes(b"b" * REMEMBERED_BYTES),
    "another size": lambda path: path.write_bytes(b"b" * (REMEMBERED_BYTES + 1)),
    "other bytes under the old time": lambda path: _rewrite_under_the_old_time(path),
    "another file in its place": lambda path: _replace_by_a_copy_with_its_time(path),
}


def _rewrite_under_the_old_time(path: Path) -> None:
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_bytes(b"b" * REMEMBERED_BYTES)
    os.utime(path, ns=times)


def _replace_by_a_copy_with_its_time(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"b" * REMEMBERED_BYTES)
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", CHANGES)
def test_what_has_changed_is_read_again(change: str, large: Path, cache: Path) -> None:
    known_checksum(large)
    time.sleep(0.02)  # more than a tick of the file system's clock
    CHANGES[change](large)
    assert known_checksum(large) == sha256(large.read_bytes())


@pytest.mark.parametrize("size", [10, REMEMBERED_BYTES])
def test_small_files_and_those_just_written_are_not_remembered(size: int, tmp_path: Path, cache: Path) -> None:
    assert SETTLED_S > 1
    (tmp_path / "file").write_bytes(b"a" * size)
    assert known_checksum(tmp_path / "file") == sha256(b"a" * size)
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_done_without(large: Path, tmp_path: Path, cache: Path) -> None:
    (tmp_path / "cache").write_text("no directory")
    assert known_checksum(large) == sha256(large.read_bytes())


def test_a_damaged_note_is_passed_over(large: Path, cache: Path) -> None:
    known_checksum(large)
    (note,) = cache.iterdir()
    for damage in ("", "x", "\xff"):
        note.write_text(damage, "latin-1")
        assert known_checksum(large) == sha256(large.read_bytes())
