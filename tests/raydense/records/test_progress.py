"""The display in a log: a line a phase now and then, and nothing that only a terminal understands."""

from __future__ import annotations

import io
import json
import math

from raydense.core.terminal import open_console
from raydense.records.progress import ProgressDisplay


def test_a_log_gets_plain_lines_for_the_first_and_the_last_of_a_phase() -> None:
    log = io.StringIO()
    with ProgressDisplay(open_console(file=log, width=40)) as display:
        display.say("run directory: " + "x" * 60)
        for done in range(1, 101):
            display.update("stage 1/2 training", done, 100, {"loss": done})
    lines = log.getvalue().splitlines()
    assert lines[0] == "run directory: " + "x" * 60  # paths are not broken
    assert lines[-1] == "stage 1/2 training: 100/100 loss 100"
    assert len(lines) <= 3  # not a hundred
    assert "\x1b" not in log.getvalue()


def test_a_machine_gets_an_object_a_line_with_the_same_facts() -> None:
    log = io.StringIO()
    with ProgressDisplay(open_console(file=log, width=40), "json") as display:
        display.say("run directory: [bold]here :cat: [cat:dog:0.5]")
        display.update("stage 1/2 training", 4, 4, {"loss": 0.5, "skipped": math.nan})
        display.result({"reward": 1.25}, "a table for people")
    message, progress, result = map(json.loads, log.getvalue().splitlines())
    assert (message["event"], message["text"]) == ("message", "run directory: [bold]here :cat: [cat:dog:0.5]")
    assert {k: progress[k] for k in ("event", "phase", "done", "total", "left_s", "loss", "skipped")} == {
        "event": "progress",
        "phase": "stage 1/2 training",
        "done": 4,
        "total": 4,
        "left_s": 0.0,
        "loss": 0.5,
        "skipped": None,
    }
    assert (result["event"], result["reward"]) == ("result", 1.25)
    assert message["time"] <= progress["time"] <= result["time"]


def test_a_terminal_gets_one_live_line_with_count_facts_and_times() -> None:
    terminal = io.StringIO()
    with ProgressDisplay(open_console(file=terminal, force_terminal=True, width=120)) as display:
        display.say("run directory: here")
        display.update("stage 1/2 sampling", 3, 8, {"reward/mean": 0.25})
        display.update("stage [red]1/2 :cat: training", 1, 4, {"score[red]v2 :cat:": 0.5})
    shown = terminal.getvalue()
    assert "run directory: here\n" in shown
    last = [line for line in shown.splitlines() if "stage [red]1/2 :cat: training" in line][-1]
    assert "1/4" in last
    assert "score[red]v2 :cat: 0.5" in last
    assert "left" in last
    assert shown.count("\n") <= 4  # it is redrawn in place


def test_a_run_says_what_is_left_of_all_of_it_and_nothing_while_that_is_not_known() -> None:
    log = io.StringIO()
    with ProgressDisplay(open_console(file=log, width=40)) as display:
        display.update("stage 1 of 8, drawing and scoring", 8, 8, {"reward": 0.75}, None)
        display.update("stage 2 of 8, learning", 8, 8, {"loss": 0.5, "reward": 0.8, "base model": 0.75}, 400.0)
    assert log.getvalue().splitlines() == [
        "stage 1 of 8, drawing and scoring: 8/8 reward 0.75",
        "stage 2 of 8, learning: 8/8 loss 0.5, reward 0.8, base model 0.75, about 7 min left",
    ]
