"""What PyTorch's CPU allocator gives out, as a GPU's would."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

Built = TypeVar("Built")


def allocated(run: Callable[[], object]) -> int:
    """The most bytes at once of what is allocated while it runs."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        run()
    events = [event for event in trace.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def unfolds(dtype: torch.dtype) -> bool:
    """Whether a convolution in it copies each picture into columns on this CPU, nine values for one, as no GPU does.

    PyTorch does where oneDNN cannot convolve in that dtype: in float16 it needs AVX512-FP16.
    """
    able = {torch.float16: "_is_mkldnn_fp16_supported", torch.bfloat16: "_is_mkldnn_bf16_supported"}
    return dtype in able and not getattr(torch.ops.mkldnn, able[dtype])()


def kept_by(build: Callable[[], Built]) -> tuple[Built, int]:
    """What was built, and the bytes of all tensors that came with it and stay."""
    before = _storages()
    built = build()
    return built, sum(size for key, size in _storages().items() if key not in before)


def _storages() -> dict[int, int]:
    gc.collect()
    own = (torch.Tensor, torch.nn.Parameter)  # a compiler leaves tensors of other types, which have no storage
    tensors = [found for found in gc.get_objects() if type(found) in own]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return {pointer: size for pointer, size in storages.items() if pointer}
