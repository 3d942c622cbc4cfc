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

from learner.batch_source import BatchSource, DrawnBatch
from learner.batching import Ties
from learner.clips import Clip
from learner.gang import Gang
from learner.objective import CLIPPED, DISTANCES, batch_metrics, preference_loss
from learner.references import ReferenceCache
from raydense.core.interfaces import NonFiniteStepError
from raydense.core.memory import memory_advice
from raydense.core.threads import cpu_threads
from raydense.core.transfers import to_device
from raydense.core.types import ByStep, FloatArray, PolicyWeights, StepMetrics
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
        references: of the policy.
        total_steps: of the whole run, for the warm-up ratio.
        gang: the workers; None: this one is alone.
        loss_scale: a power of two by which gradients are larger on their way through the network, where float16 would
            lose small ones.
        clip, balance: as of `preference_loss`.
        The rest: METHOD §4 and §6, as in `TrainConfig`.
    """

    def __init__(
        self,
        policy: Policy,
        batches: BatchSource[Handle],
        references: ReferenceCache,
        *,
        total_steps: int,
        c: float,
        clip: Clip,
        ties: Ties,
        balance: Tensor | None,
        reg_to_pi_init: bool,
        reg_to_pi_old: bool,
        no_reg_warmup_ratio: float,
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
        max_grad_norm: float,
        threads: int,
        gang: Gang | None = None,
        loss_scale: float = 1.0,
    ) -> None:
        self.policy, self._batches, self._references, self._gang = policy, batches, references, gang or Gang()
        self._to_init, self._to_old = reg_to_pi_init, reg_to_pi_old
        self._loss: Any = {"c": c, "ties": ties, "balance": balance}
        self._clip = clip
        self._warm_up_steps = int(no_reg_warmup_ratio * total_steps)
        self._max_grad_norm, self._threads, self._loss_scale = max_grad_norm, threads, loss_scale
        self._optimizer = torch.optim.AdamW(
            policy.parameters(), lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True
        )
        self._step = self._skipped = 0
        self._stage = -1

    def weights(self) -> PolicyWeights:
        """θ as it is; its version is the number of gradient steps taken."""
        self.policy.version = self._step
        return self.policy.weights()

    def begin_stage(self, stage: int, groups: Sequence[Handle]) -> None:
        """Replaces the replay buffer's content; groups are fetched when a batch draws them."""
        self._stage = stage
        self._references.begin_stage(stage)
        self._batches.begin_stage(stage, groups)

    def train(self, num_steps: int) -> list[StepMetrics]:
        """Takes gradient steps; each draws its batch from its own generator, so that any cut gives the same run."""
        with cpu_threads(self._threads):
            return [self._train_step() for _ in range(num_steps)]

    def state_dict(self) -> dict[str, Any]:
        """Counters, LoRA, optimizer state, and the reference's log-probs as far as this stage knows them.

        All tensors are on the CPU, so that whoever reads them needs no GPU and opens no context on one.
        """
        return {
            "step": self._step,
            "skipped": self._skipped,
            "weights": self.weights(),
            "optimizer": on_cpu(self._optimizer.state_dict()),
            "references": self._references.state_dict(),
            "clip": self._clip.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.policy.bind(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._references.load_state_dict(state["references"])
        self._clip.load_state_dict(state.get("clip", {}))  # none in a checkpoint of earlier code
        self._step, self._skipped = state["step"], state["skipped"]

    def _train_step(self) -> StepMetrics:
        batch = self._gang.agree(lambda: self._batches.take(self._step))
        self._optimizer.zero_grad(set_to_none=True)
        with memory_advice("set learner.micro_batch=auto or lower it, or set learner.gradient_checkpointing=true"):
            values, by_step = self._accumulate_gradient(batch)
        self._step += 1
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            return self._skip(batch)
        self._optimizer.step()
        self.policy.update()
        self._skipped = 0
        return StepMetrics(self._step, {**values, "skipped": 0.0}, batch.pulled_bytes, by_step)

    def _skip(self, batch: DrawnBatch) -> StepMetrics:
        """Leaves the weights and the optimizer as they are; raises when it happens too often in a row."""
        self._skipped += 1
        plan = batch.plan
        if self._skipped >= MAX_SKIPPED:
            raise NonFiniteStepError(
                f"{self._skipped} gradient steps in a row had no finite loss or gradient; the last was step "
                f"{self._step} of stage {self._stage}: groups {plan.groups.tolist()}, "
                f"trajectories {plan.trajectories.tolist()}, denoising steps {plan.steps.tolist()}"
            )
        return StepMetrics(self._step, {"skipped": 1.0}, batch.pulled_bytes)

    def _accumulate_gradient(self, batch: DrawnBatch) -> tuple[dict[str, float], ByStep]:
        """Puts the whole batch's clipped gradient in place, every worker's share together.

        The device is waited for once, at the end. Returns: metrics, and those by denoising step.
        """
        plan, device, clip = batch.plan, self.policy.device, self._clip.now()
        limit = clip if isinstance(clip, float) else to_device(torch.from_numpy(clip), device)
        self._references.forget_changed(batch.fingerprints)
        initial = torch.zeros(*plan.trajectories.shape, plan.steps.shape[1], device=device)
        to_init, to_old = (wanted and self._step >= self._warm_up_steps for wanted in (self._to_init, self._to_old))
        measured: dict[str, Tensor] = {}
        for rows, part in batch.parts:
            references = [part.old_log_probs] if to_old else []
            if to_init:
                initial[rows] = known = self._references.look_up(part)
                references.append(known)
            loss, values = preference_loss(self.policy, part, references, clip=limit, **self._loss)
            (loss.sum() / len(plan) * self._loss_scale).backward()  # type: ignore[no-untyped-call]
            for name, value in values.items():
                measured.setdefault(name, value.new_zeros(len(plan), *value.shape[1:]))[rows] = value
        measured["initial"] = initial
        gradients = [p.grad for p in self.policy.parameters() if p.grad is not None]
        self._gang.add_up([*gradients, *measured.values()])
        torch._foreach_div_(gradients, self._loss_scale)
        norm = clip_grad_norm_(self.policy.parameters(), self._max_grad_norm)
        read = _read({**measured, "grad_norm": norm})
        log_probs, total = read.pop("initial"), float(read.pop("grad_norm"))
        if to_init:
            self._references.remember(plan, log_probs)
        by_step = self._observe(plan.steps.numpy(), read.pop(DISTANCES), read.pop(CLIPPED), clip)
        return {**batch_metrics(read), "grad_norm": total}, by_step

    def _observe(
        self, steps: NDArray[np.int64], distances: FloatArray, clipped: FloatArray, clip: float | FloatArray
    ) -> ByStep:
        """Tells δ what was seen. Returns: of each denoising step how many log-ratios were clipped, and its δ."""
        self._clip.observe(steps, distances)
        count = self.policy.schedule.num_steps
        drawn = np.broadcast_to(steps[:, None, :], clipped.shape)
        counts = np.bincount(drawn.reshape(-1), weights=clipped.reshape(-1), minlength=count)
        by_step: dict[str, tuple[float | None, ...]] = {"clipped": tuple(map(int, counts))}
        if not isinstance(clip, float):
            by_step["clip"] = tuple(float(value) if np.isfinite(value) else None for value in clip)
        return by_step


def _read(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[np.float32]]:
    """Copies to the CPU in one piece: every read waits for the device."""
    flat = torch.cat([tensor.flatten() for tensor in tensors.values()]).cpu()
    pieces = torch.split(flat, [tensor.numel() for tensor in tensors.values()])
    return {name: piece.view(t.shape).numpy() for (name, t), piece in zip(tensors.items(), pieces, strict=True)}
