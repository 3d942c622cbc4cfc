"""The parts that one-line messages are made of."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path


def one_line(error: BaseException) -> str:
    """An error's text without line breaks; its type's name where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def duration(seconds: float) -> str:
    """As people say it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def command(*arguments: str | Path) -> str:
    """A command of ours as a shell takes it, whatever is in a path."""
    return shlex.join(["raydense", *map(str, arguments)])


def first_few(items: Sequence[str], shown: int = 4) -> str:
    """The first items of a list, and how many more there are."""
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return ", ".join(items[:shown]) + more
