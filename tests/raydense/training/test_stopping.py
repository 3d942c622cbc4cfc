"""Signals: the first asks, the second stops at once, and the handlers before come back."""

from __future__ import annotations

import os
import signal

import pytest

from raydense.training.stopping import StopFlag, StopRequested


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_stops(number: signal.Signals) -> None:
    said: list[str] = []
    flag = StopFlag()
    with flag.listening(said.append):
        assert flag.signal_number is None
        os.kill(os.getpid(), number)
        assert flag.signal_number == number
        assert len(said) == 1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)


def test_the_handlers_before_come_back() -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with StopFlag().listening(print):
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] != before
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_the_request_names_its_signal() -> None:
    assert str(StopRequested(signal.SIGTERM)) == "stopped by SIGTERM"
