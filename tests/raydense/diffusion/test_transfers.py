"""Copies to a GPU and back: pinned, queued, and waited for once; a GPU is stood in for by tensors without content."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from raydense.diffusion.transfers import to_cpu, to_device

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


class Watched(TorchFunctionMode):
    """What copies are asked for, in order; pinning is noted instead of done."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is Tensor.pin_memory:
            self.seen.append("pinned")
            return args[0]
        if kwargs.get("pin_memory"):
            self.seen.append("pinned")
        if function in (Tensor.to, Tensor.copy_, Tensor.cpu):
            self.seen.append(f"{function.__name__} {'queued' if kwargs.get('non_blocking') else 'waits'}")
        return function(*args, **kwargs)


def test_a_copy_to_a_gpu_is_pinned_and_queued() -> None:
    with FakeTensorMode(), Watched() as watched:
        there = to_device(torch.zeros(3, dtype=torch.int64), GPU)
    assert (there.device, there.shape, there.dtype) == (GPU, (3,), torch.int64)
    assert watched.seen == ["pinned", "to queued"]


def test_copies_from_a_gpu_are_pinned_and_waited_for_together(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeTensorMode(), Watched() as watched:
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: watched)
        watched.synchronize = lambda: watched.seen.append("wait")  # type: ignore[attr-defined]
        here = to_cpu([torch.zeros(2, 3, device=GPU), torch.zeros(4, dtype=torch.uint8, device=GPU)])
    assert [(t.device, tuple(t.shape), t.dtype) for t in here] == [
        (CPU, (2, 3), torch.float32),
        (CPU, (4,), torch.uint8),
    ]
    assert watched.seen == ["pinned", "pinned", "copy_ queued", "copy_ queued", "wait"]


def test_on_a_cpu_nothing_is_copied() -> None:
    tensor = torch.arange(3)
    assert to_device(tensor, CPU) is tensor
    assert [here is tensor for here in to_cpu([tensor, tensor])] == [True, True]
    assert to_cpu([]) == []
