"""What a person sees of a run: one live display on a terminal, plain lines elsewhere, or JSON lines for a machine."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from raydense.core.messages import duration

LINE_EVERY_S = 5.0  # between two lines of one phase, where there is no live display
LogFormat = Literal["auto", "plain", "json"]
Facts = Mapping[str, float]


class ProgressDisplay:
    """Phases with a count each; `say` prints a lasting line above them.

    Args:
        console: of `open_console`, so that text is shown as it is.
        log_format: `auto` is a live display on a terminal and plain lines elsewhere; `json` is an object a line, with
            `time` (seconds since 1970), `event` (`message`, `progress` or `result`) and the facts by name.
    """

    def __init__(self, console: Console, log_format: LogFormat = "auto") -> None:
        self._console, self._json = console, log_format == "json"
        self._is_live = console.is_terminal and log_format == "auto"
        self._live = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            console=console,
            transient=True,
            disable=not self._is_live,
        )
        self._task = self._live.add_task("starting", total=None, facts="", left="")
        self._phase = ""
        self._phase_started = self._last_line = time.monotonic()

    def __enter__(self) -> ProgressDisplay:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def say(self, line: str) -> None:
        if self._json:
            self._event("message", {"text": line})
        else:
            self._live.console.print(line, soft_wrap=True)

    def result(self, summary: Mapping[str, Any], shown: Any) -> None:
        """The end of a run: `shown` for people, `summary` for machines."""
        if self._json:
            self._event("result", summary)
        else:
            self._live.console.print(shown)

    def update(
        self,
        phase: str,
        done: int,
        total: int,
        facts: Facts | None = None,
        left_s: float | Literal["phase"] | None = "phase",
    ) -> None:
        """Moves the bar of a phase; in a log, at most a line every few seconds and one at the end.

        Args: left_s: seconds until all is done; None: not known yet; phase: all is done when this phase is.
        """
        facts, now = facts or {}, time.monotonic()
        if phase != self._phase:
            self._phase, self._phase_started = phase, now
            self._live.reset(self._task, description=phase, total=total, facts="", left="")
        of_phase = (now - self._phase_started) / done * (total - done) if done else None
        left = of_phase if left_s == "phase" else left_s
        ending = "" if left is None or (of_phase == left and done == total) else f"about {duration(left)} left"
        if self._is_live:
            self._live.update(self._task, completed=done, total=total, facts=_text(facts), left=ending)
        elif done == total or now - self._last_line > LINE_EVERY_S:
            self._last_line = now
            if self._json:
                counts = {"phase": phase, "done": done, "total": total, "left_s": of_phase, "run_left_s": left}
                known = {name: value if math.isfinite(value) else None for name, value in facts.items()}
                self._event("progress", {**counts, **known})  # JSON has no NaN
            else:
                self.say(", ".join(filter(None, (f"{phase}: {done}/{total} {_text(facts)}".rstrip(), ending))))

    def _event(self, event: str, content: Mapping[str, Any]) -> None:
        line = {"time": round(time.time(), 3), "event": event, **content}
        self._console.print(json.dumps(line), soft_wrap=True)


def _text(facts: Facts) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in facts.items())
