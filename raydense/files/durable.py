"""Files that are whole whenever somebody looks, and checksums of files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REMEMBERED_BYTES = 2**20  # of a file, from which on its checksum is kept in the user's cache
SETTLED_S = 2.0  # after its last change, before it is: what is written again at once may keep its times


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a name to write under; what lies there at the end takes the place of `path`, on disk and in one step.

    Whatever happens meanwhile, a full disk or a kill, `path` has its old content or all of the new one.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        sync(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """UTF-8, in one step; see `replacing`."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def json_if_there(path: Path) -> Any:
    """What a file written so says; None where there is none."""
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def sync(path: Path) -> None:
    """Returns when a file's content, or a directory's entries, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_checksum(path: Path) -> str:
    """SHA-256 of a file's bytes, read now."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_checksum(path: Path) -> str:
    """`file_checksum`, of a large file from the user's cache while path, size and times are those of then.

    A cache that cannot be written, as on a read-only file system, is done without.
    """
    path = path.resolve()
    status = path.stat()
    if status.st_size < REMEMBERED_BYTES:
        return file_checksum(path)
    stamp = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        known, checksum = _note(path).read_text("utf-8").rsplit(maxsplit=1)
        if known == stamp:
            return checksum
    checksum = file_checksum(path)
    if time.time() - max(status.st_mtime, status.st_ctime) > SETTLED_S:
        with contextlib.suppress(OSError, RuntimeError):
            note = _note(path)
            note.parent.mkdir(parents=True, exist_ok=True)
            write_text(note, f"{stamp} {checksum}\n")
    return checksum


def _note(path: Path) -> Path:
    """One small file a path, so that processes beside each other need no lock. Raises: RuntimeError without a home."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "raydense" / "checksums" / hashlib.sha256(str(path).encode()).hexdigest()[:32]
