"""The resumable loop that all pre-training phases share."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

CHECKPOINT_EVERY = 100
_LOG_EVERY = 100
_WARMUP_STEPS = 50
_MAX_GRAD_NORM = 1.0


def constant_rate(step: int, steps: int) -> float:
    """Share of the peak learning rate: a linear warm-up, then 1."""
    return min(1.0, (step + 1) / _WARMUP_STEPS)


def cosine_rate(step: int, steps: int) -> float:
    """Share of the peak learning rate: a linear warm-up, then half a cosine down to 0 at `steps`."""
    return constant_rate(step, steps) * 0.5 * (1.0 + float(torch.cos(torch.tensor(torch.pi * step / steps))))


class Trainer:
    """Optimises `modules` and can stop and go on at any step without changing the result.

    One generator, saved with the weights, is the only source of randomness: an interrupted and
    resumed run ends in the same bytes as an uninterrupted one on the same machine.

    Args:
        name: names the checkpoint `<folder>/<name>.ckpt` and the printed lines.
        modules: everything that is trained, by name.
        rate: maps (step, steps) to the share of `peak_rate` in use.
        ema_decay: None, or the decay of an exponential moving average of all parameters.
    """

    def __init__(
        self,
        name: str,
        modules: Mapping[str, nn.Module],
        *,
        folder: Path,
        seed: int,
        steps: int,
        peak_rate: float,
        rate: Callable[[int, int], float],
        ema_decay: float | None = None,
    ) -> None:
        self.name, self.steps, self.step = name, steps, 0
        self.modules = nn.ModuleDict(dict(modules))
        self.generator = torch.Generator().manual_seed(seed)
        self._path = folder / f"{name}.ckpt"
        self._peak_rate, self._rate, self._ema_decay = peak_rate, rate, ema_decay
        self._optimizer = torch.optim.AdamW(self.modules.parameters(), lr=peak_rate, weight_decay=1e-3)
        self._ema = {key: value.detach().clone() for key, value in self._parameters().items()} if ema_decay else {}

    def _parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.modules.named_parameters())

    def resume(self) -> None:
        """Continues from the checkpoint, if there is one."""
        if not self._path.exists():
            return
        state: dict[str, Any] = torch.load(self._path, weights_only=True)
        self.modules.load_state_dict(state["modules"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._ema = state["ema"]
        self.step = state["step"]
        self.generator.set_state(state["generator"])
        print(f"{self.name}: resumed at step {self.step}", flush=True)

    def save(self) -> None:
        """Writes the checkpoint; a crash while writing leaves the previous one."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        state = {
            "modules": self.modules.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "ema": self._ema,
            "step": self.step,
            "generator": self.generator.get_state(),
        }
        torch.save(state, partial)
        os.replace(partial, self._path)

    def run(
        self,
        loss: Callable[[torch.Generator], Tensor],
        *,
        stop_at: int | None = None,
        after_step: Callable[[int], None] | None = None,
    ) -> None:
        """Takes optimiser steps until `stop_at` (default: all), then saves.

        Args:
            loss: draws a batch with the given generator and returns its scalar loss.
            after_step: called with the number of steps taken so far.
        """
        started, total, counted = time.perf_counter(), 0.0, 0
        self.modules.train()
        last = self.steps if stop_at is None else min(stop_at, self.steps)
        while self.step < last:
            total, counted = total + self._take_step(loss), counted + 1
            if self.step % _LOG_EVERY == 0:
                seconds = time.perf_counter() - started
                print(
                    f"{self.name}: step {self.step}/{self.steps} loss {total / counted:.4f} {seconds:.0f} s",
                    flush=True,
                )
                total, counted = 0.0, 0
            if after_step is not None:
                after_step(self.step)
            if self.step % CHECKPOINT_EVERY == 0:
                self.save()
        self.save()
        self.modules.eval()

    def _take_step(self, loss: Callable[[torch.Generator], Tensor]) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = self._peak_rate * self._rate(self.step, self.steps)
        value = loss(self.generator)
        self._optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.modules.parameters(), _MAX_GRAD_NORM)
        self._optimizer.step()
        self.step += 1
        if self._ema_decay is not None:
            # Early on a short memory, so that the random start is forgotten.
            decay = min(self._ema_decay, (1 + self.step) / (10 + self.step))
            for key, value_now in self._parameters().items():
                self._ema[key].lerp_(value_now.detach(), 1.0 - decay)
        return float(value.detach())

    def averaged_state(self, module: str) -> dict[str, Tensor]:
        """The moving average of one module's parameters, by that module's own names."""
        prefix = f"{module}."
        return {key.removeprefix(prefix): value.clone() for key, value in self._ema.items() if key.startswith(prefix)}
