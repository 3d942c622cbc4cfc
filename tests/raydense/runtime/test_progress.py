"""The display in a log: a line a phase now and then, and nothing that only a terminal understands."""

from __future__ import annotations

import io

from rich.console import Console

from raydense.runtime.progress import ProgressDisplay


def test_a_log_gets_plain_lines_for_the_first_and_the_last_of_a_phase() -> None:
    log = io.StringIO()
    with ProgressDisplay(Console(file=log, width=40)) as display:
        display.say("run directory: " + "x" * 60)
        for done in range(1, 101):
            display.update("stage 1/2 training", done, 100, {"loss": done})
    lines = log.getvalue().splitlines()
    assert lines[0] == "run directory: " + "x" * 60  # paths are not broken
    assert lines[-1] == "stage 1/2 training: 100/100 loss 100"
    assert len(lines) <= 3  # not a hundred
    assert "\x1b" not in log.getvalue()
