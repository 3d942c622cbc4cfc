"""The learner: the LoRA, its optimizer, the replay buffer, and off-policy gradient steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.utils._pytree import tree_map

from learner.averaging import MovingAverage
from learner.batch_source import BatchSource, DrawnBatch
from learner.gang import Gang
from learner.objective import Objective
from raydense.core.interfaces import NonFiniteStepError
from raydense.core.memory import memory_advice
from raydense.core.threads import cpu_threads
from raydense.core.types import ByStep, PolicyWeights, StepMetrics
from raydense.diffusion.policy import Policy

Handle = TypeVar("Handle")
MAX_SKIPPED = 3  # gradient steps in a row without a finite loss and gradient


def on_cpu(state: Any) -> Any:
    """Nested dictionaries and lists with every tensor on the CPU."""
    return tree_map(lambda value: value.cpu() if isinstance(value, Tensor) else value, state)


class SGDLearner(Generic[Handle]):
    """One process, one device; several share every batch as the workers of one gang.

    Args:
        policy: its LoRA is trained in place.
        batches: of this worker's share.
        objective: of the policy.
        gang: the workers; None: this one is alone.
        loss_scale: a power of two by which gradients are larger on their way through the network, where float16 would
            lose small ones.
        ema: decay of the moving average of θ; None: there is none.
        The rest: METHOD §6, as in `TrainConfig`.
    """

    def __init__(
        self,
        policy: Policy,
        batches: BatchSource[Handle],
        objective: Objective,
        *,
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
        max_grad_norm: float,
        threads: int,
        gang: Gang | None = None,
        loss_scale: float = 1.0,
        ema: float | None = None,
    ) -> None:
        self.policy, self._batches, self._objective, self._gang = policy, batches, objective, gang or Gang()
        self._max_grad_norm, self._threads, self._loss_scale = max_grad_norm, threads, loss_scale
        self._optimizer = torch.optim.AdamW(
            policy.parameters(), lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True
        )
        self._average = None if ema is None else MovingAverage(policy.named_parameters(), ema)
        self._step = self._skipped = 0
        self._stage = -1

    def __repr__(self) -> str:
        return f"Learner({self.policy.about})"

    def weights(self) -> PolicyWeights:
        """θ as it is; its version is the number of gradient steps taken."""
        self.policy.version = self._step
        return self.policy.weights()

    def averaged(self) -> PolicyWeights | None:
        """The moving average of θ; None where none is kept."""
        return self._average.weights(self._step) if self._average else None

    def begin_stage(self, stage: int, groups: Sequence[Handle]) -> None:
        """Replaces the replay buffer's content; groups are fetched when a batch draws them."""
        self._stage = stage
        self._objective.begin_stage(stage)
        self._batches.begin_stage(stage, groups)

    def train(self, num_steps: int) -> list[StepMetrics]:
        """Takes gradient steps; each draws its batch from its own generator, so that any cut gives the same run."""
        with cpu_threads(self._threads):
            return [self._train_step() for _ in range(num_steps)]

    def state_dict(self) -> dict[str, Any]:
        """Counters, LoRA, its average, optimizer state, and what the objective remembers.

        All tensors are on the CPU, so that whoever reads them needs no GPU and opens no context on one.
        """
        return {
            "step": self._step,
            "skipped": self._skipped,
            "weights": self.weights(),
            "optimizer": on_cpu(self._optimizer.state_dict()),
            **self._objective.state_dict(),
            "average": self._average.state_dict() if self._average else {},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.policy.bind(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._objective.load_state_dict(state)
        if self._average:
            self._average.load_state_dict(state["average"])
        self._step, self._skipped = state["step"], state["skipped"]

    def _train_step(self) -> StepMetrics:
        batch = self._gang.agree(lambda: self._batches.take(self._step))
        self._optimizer.zero_grad(set_to_none=True)
        with memory_advice("set learner.micro_batch=auto or lower it, or set learner.gradient_checkpointing=true"):
            values, by_step, rows = self._accumulate_gradient(batch)
        self._step += 1
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            return self._skip(batch, rows)
        self._optimizer.step()
        self.policy.update()
        if self._average:
            self._average.update()
        self._skipped = 0
        return StepMetrics(self._step, {**values, "skipped": 0.0}, batch.pulled_bytes, by_step, rows)

    def _skip(self, batch: DrawnBatch, rows: Mapping[str, int]) -> StepMetrics:
        """Leaves the weights and the optimizer as they are; raises when it happens too often in a row."""
        self._skipped += 1
        plan = batch.plan
        if self._skipped >= MAX_SKIPPED:
            raise NonFiniteStepError(
                f"{self._skipped} gradient steps in a row had no finite loss or gradient; the last was step "
                f"{self._step} of stage {self._stage}: groups {plan.groups.tolist()}, "
                f"trajectories {plan.trajectories.tolist()}, denoising steps {plan.steps.tolist()}"
            )
        return StepMetrics(self._step, {"skipped": 1.0}, batch.pulled_bytes, network_rows=rows)

    def _accumulate_gradient(self, batch: DrawnBatch) -> tuple[dict[str, float], ByStep, dict[str, int]]:
        """Puts the whole batch's clipped gradient in place, every worker's share together.

        The device is waited for once, at the end. Returns: metrics, those by denoising step, and rows of the network.
        """
        plan, measured, before = batch.plan, dict[str, Tensor](), dict(self.policy.rows)
        self._objective.begin_step(self._step, batch.fingerprints)
        for rows, part in batch.parts:
            loss, values = self._objective.loss(part)
            (loss.sum() / len(plan) * self._loss_scale).backward()  # type: ignore[no-untyped-call]
            for name, value in values.items():
                measured.setdefault(name, value.new_zeros(len(plan), *value.shape[1:]))[rows] = value
        gradients = [p.grad for p in self.policy.parameters() if p.grad is not None]
        computed = {name: float(count - before[name]) for name, count in self.policy.rows.items()}
        measured |= {f"rows/{name}": torch.tensor(count, device=self.policy.device) for name, count in computed.items()}
        self._gang.add_up([*gradients, *measured.values()])
        torch._foreach_div_(gradients, self._loss_scale)
        norm = clip_grad_norm_(self.policy.parameters(), self._max_grad_norm)
        read = _read({**measured, "grad_norm": norm})
        total = float(read.pop("grad_norm"))
        counts = {name: int(read.pop(f"rows/{name}")) for name in computed}
        metrics, by_step = self._objective.end_step(plan, read)
        return {**metrics, "grad_norm": total}, by_step, counts


def _read(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[np.float32]]:
    """Copies to the CPU in one piece: every read waits for the device."""
    flat = torch.cat([tensor.flatten() for tensor in tensors.values()]).cpu()
    pieces = torch.split(flat, [tensor.numel() for tensor in tensors.values()])
    return {name: piece.view(t.shape).numpy() for (name, t), piece in zip(tensors.items(), pieces, strict=True)}
