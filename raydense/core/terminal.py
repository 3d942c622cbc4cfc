"""What people read, on a terminal, in a pipe or in a log: text as it was written, whatever the output can take."""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:  # rich is loaded where something is shown
    from _typeshed import ReadableBuffer as Buffer
    from rich.console import Console

IN_A_LOG = 200  # columns


def open_console(**options: Any) -> Console:
    """The only place that makes one: neither markup nor emoji codes are read in what a user wrote, in cells included.

    What the output cannot encode is written as escapes: a run does not end of a letter. Where nothing is a terminal,
    tables may be as wide as `IN_A_LOG` unless COLUMNS says otherwise.
    Args: options: as rich's own; `soft_wrap` is true unless said otherwise.
    """
    from rich.console import Console

    console = Console(**{"soft_wrap": True, **options}, markup=False, emoji=False, highlight=False)
    told = console.is_jupyter or "width" in options or os.environ.get("COLUMNS", "").strip("0").isdigit()
    if not told and not any(os.isatty(descriptor) for descriptor in (0, 1, 2)):
        console.width = IN_A_LOG
    if isinstance(console.file, io.TextIOWrapper):
        console.file.reconfigure(errors="backslashreplace")
    return console


def guard_output() -> None:
    """Of a command's process: stdout and stderr take every text, and go on when their reader has left."""
    sys.stdout, sys.stderr = _guarded(sys.stdout), _guarded(sys.stderr)


def _guarded(stream: TextIO) -> TextIO:
    """A stream on the same descriptor; the same stream where it has none."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Unbroken(stream.fileno(), "w", closefd=False)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering or stream.write_through,
    )


class _Unbroken(io.FileIO):
    """A pipe or terminal whose reader may leave, as `head` does: what is written then goes nowhere.

    A run of days must not end of a closed window; what it learns lies in its directory. A file is another matter: a
    full disk is an error, once.
    """

    def write(self, data: Buffer) -> int:
        try:
            return super().write(data)
        except OSError as error:
            left = error.errno in (errno.EPIPE, errno.EIO) and not stat.S_ISREG(os.fstat(self.fileno()).st_mode)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if not left:
                raise
        return memoryview(data).nbytes
