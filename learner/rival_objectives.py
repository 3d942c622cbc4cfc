"""Policy gradient and Diffusion-DPO, as objectives of the same learner (METHOD §10)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from learner.batching import BatchDraws, Ties
from learner.by_step import CLIPPED, DISTANCES, LOG_PROBS, SLOPES, ByStepReader, slopes
from learner.clips import Clip, on_device
from learner.losses import have_ties, pair_accuracy
from learner.objective import Measured, batch_metrics, reward_metrics
from learner.rivals import clipped_surrogate, diffusion_dpo_loss, diffusion_dpo_margins, gaussian_kl
from learner.transitions import NoisedBatch, TransitionBatch
from raydense.core.types import ByStep
from raydense.diffusion.kernel import gaussian_log_prob
from raydense.diffusion.noising import NoiseLevels
from raydense.diffusion.policy import Policy


class PolicyGradient:
    """PPO on advantages within a group: what DDPO, DanceGRPO and Flow-GRPO do.

    Args:
        clip: ε, of |ratio − 1|.
        kl: weight of KL(π_θ ‖ π_I) / elements; 0: without, which saves a call of the network.
    """

    def __init__(self, policy: Policy, clip: Clip, *, kl: float) -> None:
        self._policy, self._clip, self._kl = policy, clip, kl
        self._by_step = ByStepReader.of(policy)

    def begin_stage(self, stage: int) -> None:
        """Nothing hangs on it."""

    def begin_step(self, step: int, fingerprints: Mapping[int, int]) -> None:
        self._epsilon = self._clip.now()
        self._limit = on_device(self._epsilon, self._policy.device)

    def loss(self, part: TransitionBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        given, step = part.given(), part.t[part.draws]
        initial = None
        if self._kl:
            with self._policy.reference():
                initial = self._policy.transition(*given)[0].detach()
        mean, sigma, _ = self._policy.transition(*given)
        log_probs = gaussian_log_prob(part.x_next, mean, sigma)[part.draws]
        log_ratio = log_probs - part.old_log_probs
        limit = self._limit[step] if isinstance(self._limit, Tensor) else self._limit
        loss = clipped_surrogate(log_ratio.exp(), part.advantages, limit).mean(dim=(1, 2))
        values = _ratios(log_ratio.detach(), limit, part)
        values |= {LOG_PROBS: log_probs.detach(), SLOPES: slopes(loss, log_probs)}  # of the surrogate alone
        if initial is not None:
            divergence = gaussian_kl(mean, initial, sigma)[part.draws].mean(dim=(1, 2))
            loss = loss + self._kl * divergence
            values["kl"] = divergence.detach()
        return loss, {"loss": loss.detach(), **values}

    def end_step(self, plan: BatchDraws, measured: Measured) -> tuple[dict[str, float], ByStep]:
        return batch_metrics(measured), self._by_step.tell(self._clip, self._epsilon, plan, measured)

    def state_dict(self) -> dict[str, Any]:
        return {"clip": self._clip.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._clip.load_state_dict(state["clip"])


def _ratios(log_ratio: Tensor, limit: float | Tensor, part: TransitionBatch) -> dict[str, Tensor]:
    ratio = log_ratio.exp()
    distance = (ratio - 1).abs()
    beyond = (distance > limit).float()
    return {
        DISTANCES: distance,
        CLIPPED: beyond,
        "pair_accuracy": pair_accuracy(log_ratio.mean(dim=-1), part.rewards),
        "log_ratio/clip_fraction": beyond.mean(dim=(1, 2)),
        "log_ratio/old_abs_mean": log_ratio.abs().mean(dim=(1, 2)),
        "ratio/mean": ratio.mean(dim=(1, 2)),
        "ratio/max": ratio.amax(dim=(1, 2)),
        "advantage/abs_mean": part.advantages.abs().mean(dim=1),
        **reward_metrics(part.rewards),
    }


class DiffusionDPO:
    """Pairs of finished pictures, under the noise of pre-training and without guidance.

    Args:
        levels: of noise, which the batches' draws index.
        beta, ties: as of `diffusion_dpo_margins`; a tied pair costs nothing under ties=marginal.
    """

    def __init__(self, policy: Policy, levels: NoiseLevels, *, beta: float, ties: Ties) -> None:
        self._policy, self._levels, self._beta, self._ties = policy, levels.to(policy.device), beta, ties

    def begin_stage(self, stage: int) -> None:
        """Nothing hangs on it."""

    def begin_step(self, step: int, fingerprints: Mapping[int, int]) -> None:
        """Nothing hangs on it: no draw comes twice, so that no error of π_I is kept."""

    def loss(self, part: NoisedBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        with self._policy.reference():
            initial = self._errors(part).detach()
        errors = self._errors(part)
        margins = diffusion_dpo_margins(errors, initial, part.rewards, part.tie_noise, self._beta)
        loss, tied = diffusion_dpo_loss(margins), have_ties(part.rewards)
        if self._ties == "marginal":
            loss = loss.masked_fill(tied, 0.0)
        with torch.no_grad():
            logits = -0.5 * self._beta * (errors - initial).mean(dim=-1)
            values = {
                "loss": loss.detach(),
                "pair_accuracy": pair_accuracy(logits, part.rewards),
                "implicit_accuracy": (margins > 0).float().mean(dim=-1),
                "error/model": errors.mean(dim=(1, 2)),
                "error/initial": initial.mean(dim=(1, 2)),
                "logit_std": logits,
                **reward_metrics(part.rewards),
            }
        return loss, values

    def end_step(self, plan: BatchDraws, measured: Measured) -> tuple[dict[str, float], ByStep]:
        return batch_metrics(measured), {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """There is none."""

    def _errors(self, part: NoisedBatch) -> Tensor:
        """Mean squared error of each draw's prediction: float32 [b, 2, S]."""
        predicted = self._policy.predict(*part.given(), self._levels, guided=False)
        return ((predicted - part.target) ** 2).mean(dim=(1, 2, 3))[part.draws]
