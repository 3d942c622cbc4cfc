"""What one-line messages are made of."""

from __future__ import annotations

import shlex

from hypothesis import given
from hypothesis import strategies as st

from raydense.core.messages import command, first_few, one_line


@given(st.lists(st.text(st.characters(exclude_characters="\0"))))
def test_a_command_is_read_by_a_shell_as_it_was_meant(arguments: list[str]) -> None:
    assert shlex.split(command(*arguments)) == ["raydense", *arguments]
    assert command("train", "--resume", "runs/seven") == "raydense train --resume runs/seven"


def test_errors_and_lists_become_a_line() -> None:
    assert one_line(ValueError("a\n  b")) == "a b"
    assert one_line(KeyError()) == "KeyError"
    assert first_few(["a", "b", "c"], 2) == "a, b and 1 more"
    assert first_few(["a", "b"], 2) == "a, b"
