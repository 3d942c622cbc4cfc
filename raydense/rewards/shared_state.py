"""What all code of a process shares, and a user's function must leave as it found it.

A sampler denoises one unit while a function judges another, in one process, so that a function which changes torch's
default dtype, say, may change pictures that have nothing to do with it. To put the state back when it returns comes too
late for these; so a change is put back *and* raised, and what was made meanwhile is thrown away. What a function
changes and puts back itself is not seen; on torch's default dtype no picture depends (`tests/actors/test_sampler.py`).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch.backends import cuda, cudnn

from raydense.core.interfaces import SharedStateChanged

Result = TypeVar("Result")


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:  # somebody removed it
        return None


def _matmul_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # of some backends only, which torch then does not put into one word
        return "mixed"


def _set_default_device(device: torch.device) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)  # a CPU that is set slows every call


def _autocast() -> tuple[tuple[str, bool, torch.dtype], ...]:
    return tuple((d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda"))


def _set_autocast(before: tuple[tuple[str, bool, torch.dtype], ...]) -> None:
    for device, enabled, dtype in before:
        torch.set_autocast_enabled(device, enabled)
        torch.set_autocast_dtype(device, dtype)


def _autocast_nesting() -> int:
    nesting = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    return nesting - 1


def _set_autocast_nesting(before: int) -> None:
    """Where autocast was entered and never left, torch would keep its 16-bit copies of weights that change later."""
    while _autocast_nesting() > before:
        torch.autocast_decrement_nesting()
    while _autocast_nesting() < before:
        torch.autocast_increment_nesting()
    torch.clear_autocast_cache()


def _set_handler(number: signal.Signals, handler: Any) -> None:
    signal.signal(number, handler if handler is not None else signal.SIG_DFL)


# By name: how it is read, and how it is put back.
SHARED: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "torch's default device": (torch.get_default_device, _set_default_device),
    "torch's grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "torch's autocast": (_autocast, _set_autocast),
    "torch's autocast nesting": (_autocast_nesting, _set_autocast_nesting),
    "torch's threads": (torch.get_num_threads, torch.set_num_threads),
    "torch's float32 matmul precision": (_matmul_precision, torch.set_float32_matmul_precision),
    "torch's deterministic mode": (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    **{
        f"torch.backends.cudnn.{name}": (partial(getattr, cudnn, name), partial(setattr, cudnn, name))
        for name in ("benchmark", "deterministic", "allow_tf32")
    },
    **{
        f"torch's {name} attention": (getattr(cuda, f"{name}_sdp_enabled"), getattr(cuda, f"enable_{name}_sdp"))
        for name in ("flash", "mem_efficient", "math", "cudnn")
    },
    "numpy's error handling": (np.geterr, lambda before: np.seterr(**before)),
    "the working directory": (_working_directory, os.chdir),
    **{
        f"the handler of {number.name}": (partial(signal.getsignal, number), partial(_set_handler, number))
        for number in (signal.SIGINT, signal.SIGTERM)
    },
}


def keep_shared_state(who: str, call: Callable[[], Result]) -> Result:
    """What the call returns or raises, if it leaves the state alone.

    Args: who: calls, for the message.
    Raises: SharedStateChanged, once the state is what it was again; a Ctrl-C comes before it.
    """
    before = {name: read() for name, (read, _) in SHARED.items()}
    failure: BaseException | None = None
    try:
        result = call()
    except BaseException as error:
        failure = error
    changes = []
    for name, (read, put_back) in SHARED.items():
        if (now := read()) != before[name]:
            changes.append(f"{name} from {before[name]} to {now}")
            put_back(before[name])
    if changes and not isinstance(failure, KeyboardInterrupt):
        raise SharedStateChanged(
            f"{who} changed {', '.join(changes)}, which its whole process shares; leave that as it is"
        ) from failure
    if failure is not None:
        raise failure
    return result
