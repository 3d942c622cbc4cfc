"""What is a text: whole characters, which a file, a tokenizer and a terminal can take."""

from __future__ import annotations

import re

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def half_character(text: str) -> str | None:
    """The first half of a pair of surrogates that is alone in a text, such as `\\ud83d`; None where there is none.

    JSON and YAML can write one by its number, and Python makes them of command-line bytes that are no text.
    """
    found = _LONE_SURROGATE.search(text)
    return f"\\u{ord(found[0]):04x}" if found else None
