"""An error as part of a one-line message."""

from __future__ import annotations


def one_line(error: BaseException) -> str:
    """Its text without line breaks; its type's name where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
