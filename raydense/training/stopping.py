"""SIGINT and SIGTERM: the first lets the current step end and a checkpoint be written, the second stops at once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequested(RuntimeError):
    """The run was asked to stop, and has stopped where it can continue."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number


class StopFlag:
    """Set by a signal, read between steps and units."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    @contextmanager
    def listening(self, say: Callable[[str], None]) -> Iterator[None]:
        """Handles both signals inside the block, and restores the handlers after it."""

        def handle(number: int, frame: FrameType | None) -> None:
            if self.signal_number is not None:
                raise KeyboardInterrupt
            self.signal_number = number
            say("stopping after this step or unit; once more to stop at once")

        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
