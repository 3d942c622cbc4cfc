"""What a benchmark measures with: time by phase, peak memory, U-Net rows, and the device's rate of matrix products."""

from __future__ import annotations

import ctypes
import gc
import platform
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil
import torch
from torch import Tensor

from raydense.config import Config
from raydense.core.threads import cpu_threads
from raydense.diffusion.policy import Policy
from raydense.planning.footprint import denoiser_footprint
from raydense.wiring.policies import lora_config

SAMPLED_EVERY_S = 0.01
MATMUL_SIZE = {"cuda": 8192, "cpu": 2048}
MATMUL_ROUNDS = 7


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = map(float, np.quantile(values, [0.25, 0.5, 0.75]))
    return {"median": median, "quartile_low": low, "quartile_high": high}


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _timed(work: Callable[[], Any], device: torch.device) -> float:
    synchronise(device)
    started = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - started


@torch.no_grad()
def matmul_rate(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    """FLOP/s of the product of two large square matrices, the median of several."""
    size = MATMUL_SIZE[device.type]
    draws = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn((size, size), generator=draws, device=device).to(dtype) for _ in range(2))
    with cpu_threads(threads):
        _, *seconds = [_timed(lambda: a @ b, device) for _ in range(1 + MATMUL_ROUNDS)]
    return 2 * size**3 / spread(seconds)["median"]


class Timeline:
    """Marks at which phases begin. On a GPU they are events in its stream, so that nothing waits for them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[str, Any]] = []

    def start(self, phase: str) -> None:
        synchronise(self._device)
        self._marks.clear()
        self.mark(phase)

    def mark(self, phase: str) -> None:
        """From here on, time belongs to `phase`."""
        if self._device.type != "cuda":
            self._marks.append((phase, time.perf_counter()))
            return
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))  # type: ignore[no-untyped-call]
        self._marks.append((phase, event))

    def seconds(self) -> dict[str, float]:
        """By phase, until now."""
        self.mark("")
        synchronise(self._device)
        total: dict[str, float] = defaultdict(float)
        for (phase, begin), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            total[phase] += begin.elapsed_time(end) / 1000 if self._device.type == "cuda" else end - begin
        return dict(total)

    def wrap(self, owner: Any, method: str, phase: str, after: str) -> None:
        """Marks each call of `owner.method` as `phase`, and what follows as `after`."""
        call = getattr(owner, method)

        def marked(*arguments: Any, **options: Any) -> Any:
            self.mark(phase)
            result = call(*arguments, **options)
            self.mark(after)
            return result

        setattr(owner, method, marked)


class UNetWatch:
    """Counts the rows that a policy's U-Net is called with, and marks its calls.

    It puts its own method in the place of `policy.predict` for good, so that the policy is of no other use afterwards:
    a hook of the U-Net would be compiled with it, and every caller would need to know of a wrapper.
    Args:
        phases: that a call begins, without and with gradient; None: no mark.
        after: the phase that follows a call with gradient.
    """

    def __init__(self, policy: Policy, timeline: Timeline, phases: tuple[str, str], after: str | None = None) -> None:
        self.rows = {False: 0, True: 0}  # without and with gradient
        self._family, self._timeline, self._phases, self._after = policy.family, timeline, phases, after
        self._predict = policy.predict
        policy.predict = self._watched  # type: ignore[method-assign,assignment]

    def reset(self) -> None:
        self.rows = {False: 0, True: 0}

    def flops(self, config: Config, dtype: torch.dtype) -> float:
        """Of the counted rows; a row with gradient has a backward pass, but what checkpointing repeats is left out."""
        costs = {
            gradient: denoiser_footprint(self._family, lora_config(config), dtype=dtype, with_gradient=gradient).flops
            for gradient, rows in self.rows.items()
            if rows
        }
        return sum(self.rows[gradient] * flops for gradient, flops in costs.items())

    def _watched(self, x_t: Tensor, *others: Any, guided: bool = True) -> Tensor:
        gradient = torch.is_grad_enabled()
        self.rows[gradient] += len(x_t) * (self._family.rows if guided else 1)
        self._timeline.mark(self._phases[gradient])
        output = self._predict(x_t, *others, guided=guided)
        if self._after is not None and gradient:
            self._timeline.mark(self._after)
        return output


@contextmanager
def optimizer_marks(timeline: Timeline, phase: str, after: str) -> Iterator[None]:
    """Inside, every optimizer's step is `phase`, and what follows it `after`."""
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    hooks = [
        register_optimizer_step_pre_hook(lambda *_: timeline.mark(phase)),
        register_optimizer_step_post_hook(lambda *_: timeline.mark(after)),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class PeakMemory:
    """Inside, the most memory held: allocated on the GPU, or this process's resident memory beyond what it had.

    A GPU's counter is exact. Resident memory is looked at every 10 ms, after giving back what is free where the C
    library can; what an earlier measurement left behind all the same is not seen.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda, self._device = device.type == "cuda", device
        self._done, self._process = threading.Event(), psutil.Process()
        self._highest = self._before = 0
        self.what = "allocated on the GPU" if self._cuda else "growth of resident memory, looked at every 10 ms"

    def __enter__(self) -> Self:
        gc.collect()
        if self._cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
            return self
        with suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        self._before = self._highest = self._process.memory_info().rss
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._cuda:
            self._highest = torch.cuda.max_memory_allocated(self._device)
            return
        self._done.set()
        self._watcher.join()

    @property
    def peak_bytes(self) -> int:
        return self._highest - self._before

    def _watch(self) -> None:
        while not self._done.wait(SAMPLED_EVERY_S):
            self._highest = max(self._highest, self._process.memory_info().rss)


def median_phases(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each phase's median seconds over the rounds."""
    names = dict.fromkeys(name for phases in rounds for name in phases)
    return {name: float(np.median([phases.get(name, 0.0) for phases in rounds])) for name in names}


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor() or platform.machine()}, CPU"
