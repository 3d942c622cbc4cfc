"""What a user's function changes of the process is named, and put back."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raydense.core.interfaces import SharedStateChanged
from raydense.rewards.shared_state import SHARED, keep_shared_state


def ignore(*_: Any) -> None:
    """A handler that nobody else has."""


CHANGES: dict[str, Callable[[], Any]] = {
    "torch's default dtype from torch.float32 to torch.float64": partial(torch.set_default_dtype, torch.float64),
    "torch's default device from cpu to meta": partial(torch.set_default_device, "meta"),
    "torch's grad mode from True to False": partial(torch.set_grad_enabled, False),
    "torch's autocast": lambda: torch.autocast("cpu", torch.bfloat16).__enter__(),
    "torch's autocast nesting from 0 to 1": torch.autocast_increment_nesting,
    "torch's flash attention from True to False": partial(torch.backends.cuda.enable_flash_sdp, False),
    "torch's mem_efficient attention from True": partial(torch.backends.cuda.enable_mem_efficient_sdp, False),
    "torch's math attention from True": partial(torch.backends.cuda.enable_math_sdp, False),
    "torch's cudnn attention from True": partial(torch.backends.cuda.enable_cudnn_sdp, False),
    "torch's threads from 1 to 3": partial(torch.set_num_threads, 3),
    "torch's float32 matmul precision from highest to high": partial(torch.set_float32_matmul_precision, "high"),
    "torch's float32 matmul precision from highest to mixed": partial(
        setattr, torch.backends.cuda.matmul, "fp32_precision", "tf32"
    ),
    "torch's deterministic mode from 0 to 1": partial(torch.use_deterministic_algorithms, True, warn_only=True),
    "torch.backends.cudnn.benchmark from False to True": partial(setattr, torch.backends.cudnn, "benchmark", True),
    "torch.backends.cudnn.deterministic from False to True": partial(
        setattr, torch.backends.cudnn, "deterministic", True
    ),
    "torch.backends.cudnn.allow_tf32 from False to True": partial(setattr, torch.backends.cudnn, "allow_tf32", True),
    "numpy's error handling": partial(np.seterr, all="raise"),
    "the working directory": partial(os.chdir, "/"),
    "the handler of SIGINT": partial(signal.signal, signal.SIGINT, ignore),
    "the handler of SIGTERM": partial(signal.signal, signal.SIGTERM, ignore),
}


@pytest.fixture(autouse=True)
def as_a_policy_leaves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def state() -> dict[str, Any]:
    return {name: read() for name, (read, _) in SHARED.items()}


@pytest.mark.parametrize("said", CHANGES)
@pytest.mark.parametrize("then", [None, ValueError("x"), SystemExit(3)], ids=["returns", "raises", "exits"])
def test_a_change_is_named_and_put_back(said: str, then: BaseException | None) -> None:
    before = state()

    def call() -> None:
        CHANGES[said]()
        if then:
            raise then

    with pytest.raises(SharedStateChanged) as caught:
        keep_shared_state("scorer x", call)
    assert str(caught.value).startswith(f"scorer x changed {said}")
    assert str(caught.value).endswith(", which its whole process shares; leave that as it is")
    assert caught.value.__cause__ is then
    assert state() == before


def test_everything_that_is_watched_was_changed_here() -> None:
    assert {name for name in SHARED if any(said.startswith(name) for said in CHANGES)} == set(SHARED)


def test_weights_that_change_after_an_autocast_that_was_never_left_are_cast_anew() -> None:
    layer, ones = torch.nn.Linear(4, 4, bias=False), torch.ones(1, 4)
    with pytest.raises(SharedStateChanged):
        keep_shared_state("scorer x", lambda: torch.autocast("cpu", torch.bfloat16).__enter__())
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(ones).any()
    with torch.no_grad():
        layer.weight.zero_()
    with torch.autocast("cpu", torch.bfloat16):
        assert not layer(ones).any()


def test_several_changes_are_one_line() -> None:
    def call() -> None:
        torch.set_default_dtype(torch.float64)
        os.chdir("/")

    with pytest.raises(
        SharedStateChanged, match=r"default dtype from .* to .*, the working directory from .* to /, wh"
    ):
        keep_shared_state("scorer x", call)


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), StopIteration(), GeneratorExit()], ids=repr)
def test_what_leaves_the_state_alone_passes(error: BaseException) -> None:
    def call() -> None:
        with torch.no_grad(), np.errstate(all="raise"):
            raise error

    with pytest.raises(type(error)) as caught:
        keep_shared_state("scorer x", call)
    assert caught.value is error
    assert keep_shared_state("scorer x", lambda: 7) == 7


def test_a_ctrl_c_comes_first() -> None:
    def call() -> None:
        torch.set_default_dtype(torch.float64)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep_shared_state("scorer x", call)
    assert torch.get_default_dtype() == torch.float32


def test_a_working_directory_that_is_gone_is_no_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert keep_shared_state("scorer x", lambda: 7) == 7
