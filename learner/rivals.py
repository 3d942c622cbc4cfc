"""What the preference loss is compared with, as pure functions (METHOD §10): PPO on advantages, and Diffusion-DPO.

Shapes as in `learner.losses`. Log-probabilities and errors are means over a latent's elements, as everywhere here.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from raydense.core.ranking import reward_order
from raydense.core.types import FloatArray

SPREAD = 1e-4  # added to a group's standard deviation
LARGEST = 5.0  # advantage


def group_advantages(rewards: FloatArray) -> FloatArray:
    """(r − mean) / (std + 1e-4) over a whole group, clipped to ±5: float32 [K]. 0 where all are equal.

    Liu et al. 2025 (Flow-GRPO), with the population's standard deviation; the clip is that of Black et al. 2024 (DDPO).
    """
    values = rewards.astype(np.float64)
    advantages: FloatArray = ((values - values.mean()) / (values.std() + SPREAD)).clip(-LARGEST, LARGEST)
    return advantages.astype(np.float32)


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip: float | Tensor) -> Tensor:
    """max(−A r, −A clamp(r, 1 − ε, 1 + ε)): Schulman et al. 2017, eq. 7, to be minimised; [B, n, S].

    Args: ratio: π_θ / π_old of each step, [B, n, S]. advantages [B, n]. clip: ε of all steps, or of each draw.
    """
    a = advantages[..., None]
    bounded = torch.clamp(ratio, 1 - clip, 1 + clip)  # type: ignore[arg-type]  # both numbers, or both not
    return torch.maximum(-a * ratio, -a * bounded)


def gaussian_kl(mean: Tensor, reference_mean: Tensor, sigma: Tensor) -> Tensor:
    """KL(N(μ, σ² I) ‖ N(μ_ref, σ² I)) / elements = mean((μ − μ_ref)²) / 2σ²: float32 [N].

    Args: means [N, C, H, W]; sigma [N, 1, 1, 1].
    """
    return ((mean - reference_mean) ** 2 / (2 * sigma**2)).mean(dim=(1, 2, 3))


def diffusion_dpo_margins(
    errors: Tensor, reference_errors: Tensor, rewards: Tensor, tie_noise: Tensor, beta: float
) -> Tensor:
    """−β/2 · [(e_θ(w) − e_I(w)) − (e_θ(l) − e_I(l))], the logit of w's being preferred (Wallace et al. 2024, eq. 14).

    Args:
        errors, reference_errors: [B, 2, S], mean squared errors of the prediction by θ and by the base model.
        rewards, tie_noise: [B, 2]; w is the better one, by the noise where they are equal.
    Returns: [B, S].
    """
    order = reward_order(rewards, tie_noise)[..., None].expand_as(errors)
    winner, loser = (errors - reference_errors).gather(1, order).unbind(1)
    return -0.5 * beta * (winner - loser)


def diffusion_dpo_loss(margins: Tensor) -> Tensor:
    """−log sigmoid of the margins, the mean over a pair's draws: [B, S] → [B]."""
    return -logsigmoid(margins).mean(dim=-1)
