"""The learner: the LoRA, its optimizer, the replay buffer, and off-policy gradient steps."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Generic, TypeVar

import torch
from torch.nn.utils import clip_grad_norm_

from learner.batch_source import BatchSource, DrawnBatch
from learner.batching import TupleChoice
from learner.losses import step_weights
from learner.objective import TransitionBatch, preference_loss
from raydense.core.interfaces import NonFiniteStepError
from raydense.core.policy import Policy
from raydense.core.replay import ReplayBuffer
from raydense.core.threads import cpu_threads
from raydense.core.types import PolicyWeights, StepMetrics, TrajectoryGroup

Handle = TypeVar("Handle")
MAX_SKIPPED = 3  # gradient steps in a row without a finite loss and gradient


class SGDLearner(Generic[Handle]):
    """One process, one device.

    Args:
        policy: its LoRA is trained in place.
        replay: over handles of the caller's kind.
        fetch: handles → their groups, in order.
        total_steps: of the whole run, for the warm-up ratio.
        The rest: METHOD §4 and §6, as in `TrainConfig` and `StepsConfig`.
    """

    def __init__(
        self,
        policy: Policy,
        replay: ReplayBuffer[Handle],
        fetch: Callable[[Sequence[Handle]], Sequence[TrajectoryGroup]],
        *,
        run_seed: int,
        total_steps: int,
        batch_groups: int,
        tuple_size: int,
        tuples: int,
        tuple_choice: TupleChoice,
        gamma: float,
        step_draws: int,
        exclude_last: int,
        c: float,
        clip: float,
        reg_to_pi_init: bool,
        reg_to_pi_old: bool,
        no_reg_warmup_ratio: float,
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
        max_grad_norm: float,
        micro_batch: int | None,
        autocast: torch.dtype | None,
        threads: int,
    ) -> None:
        self._policy = policy
        self._batches = BatchSource(
            replay,
            fetch,
            run_seed=run_seed,
            batch_groups=batch_groups,
            step_weights=step_weights(policy.schedule.num_steps, gamma, exclude_last),
            tuple_size=tuple_size,
            tuples=tuples,
            tuple_choice=tuple_choice,
            step_draws=step_draws,
        )
        self._loss = {"c": c, "clip": clip, "reg_to_pi_init": reg_to_pi_init, "reg_to_pi_old": reg_to_pi_old}
        self._warm_up_steps = int(no_reg_warmup_ratio * total_steps)
        self._max_grad_norm, self._micro_batch = max_grad_norm, micro_batch
        self._autocast, self._threads = autocast, threads
        self._optimizer = torch.optim.AdamW(policy.parameters(), lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        self._step = self._skipped = 0
        self._stage = -1

    def weights(self) -> PolicyWeights:
        """θ as it is; its version is the number of gradient steps taken."""
        self._policy.version = self._step
        return self._policy.weights()

    def begin_stage(self, stage: int, groups: Sequence[Handle]) -> None:
        """Replaces the replay buffer's content; groups are fetched when a batch draws them."""
        self._stage = stage
        self._batches.begin_stage(stage, groups)

    def train(self, num_steps: int) -> list[StepMetrics]:
        """Takes gradient steps; each draws its batch from its own generator, so that any cut gives the same run."""
        with cpu_threads(self._threads):
            return [self._train_step() for _ in range(num_steps)]

    def state_dict(self) -> dict[str, Any]:
        """Counters, LoRA and optimizer state."""
        return {
            "step": self._step,
            "skipped": self._skipped,
            "weights": self.weights(),
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._policy.bind(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._step, self._skipped = state["step"], state["skipped"]

    def _train_step(self) -> StepMetrics:
        batch = self._batches.take(self._step)
        self._optimizer.zero_grad(set_to_none=True)
        values = self._accumulate_gradient(batch.transitions.to(self._policy.device))
        norm = float(clip_grad_norm_(self._policy.parameters(), self._max_grad_norm))
        self._step += 1
        if not (math.isfinite(values["loss"]) and math.isfinite(norm)):
            return self._skip(batch)
        self._optimizer.step()
        self._skipped = 0
        return StepMetrics(self._step, {**values, "grad_norm": norm, "skipped": 0.0}, batch.pulled_bytes)

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

    def _accumulate_gradient(self, batch: TransitionBatch) -> dict[str, float]:
        """Adds the batch's gradient in micro-batches; returns metrics averaged over the batch."""
        totals: dict[str, float] = defaultdict(float)
        size = self._micro_batch or len(batch)
        for start in range(0, len(batch), size):
            rows = batch.rows(start, start + size)
            precision = torch.autocast(self._policy.device.type, self._autocast) if self._autocast else nullcontext()
            with precision:
                loss, metrics = preference_loss(
                    self._policy,
                    rows,
                    warm_up=self._step < self._warm_up_steps,
                    **self._loss,  # type: ignore[arg-type]
                )
            (loss.sum() / len(batch)).backward()  # type: ignore[no-untyped-call]
            for name, value in metrics.items():
                totals[name] += float(value) * len(rows) / len(batch)
        return dict(totals)
