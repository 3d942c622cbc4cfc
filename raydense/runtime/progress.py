"""What a person sees of a run: one live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PLAIN_EVERY_S = 5.0  # between two plain lines of one phase


class ProgressDisplay:
    """Phases with a count each; `say` prints a lasting line above them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._live.add_task("starting", total=None, facts="")
        self._phase, self._last_line = "", 0.0

    def __enter__(self) -> ProgressDisplay:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def say(self, line: str) -> None:
        self._live.console.print(line, highlight=False, soft_wrap=True)

    def update(self, phase: str, done: int, total: int, facts: str = "") -> None:
        """Moves the bar of a phase; in a log, at most a line every few seconds and one at the end."""
        if self._console.is_terminal:
            if phase != self._phase:
                self._live.reset(self._task, description=phase, total=total, facts=facts)
            self._live.update(self._task, completed=done, total=total, facts=facts)
        elif done == total or time.monotonic() - self._last_line > PLAIN_EVERY_S:
            self._last_line = time.monotonic()
            self.say(f"{phase}: {done}/{total} {facts}".rstrip())
        self._phase = phase
