"""That a policy draws with the weights that it was given, seen in what its network predicts."""

from __future__ import annotations

import torch
from torch import Tensor

from raydense.core.finite import all_finite
from raydense.core.interfaces import InertWeights
from raydense.diffusion.policy import Policy
from raydense.families.conditioning import Conditioning

ROUNDING = 3.0  # times the error that the base model's own prediction has in the network's dtype
FLOAT32 = 1e-4  # of the prediction's norm: merging W + ΔW in float32, under guidance


@torch.no_grad()
def prove_effect(policy: Policy, x: Tensor, conditioning: Conditioning) -> None:
    """Trained weights change a probe's prediction, and to what the LoRA beside the weights gives in float32.

    The latter within `ROUNDING` times the dtype's error, plus `FLOAT32`; seen were at most 0.4 of that, with LoRAs that
    move the prediction by up to a quarter. Where nothing is merged, there is nothing to compare, nor where the network
    overflows, which its next chain tells. Costs two network calls and, merged, two more in float32.
    Args: x [1, C, H, W]; conditioning of one row.
    Raises: InertWeights; RuntimeError if they were merged wrongly.
    """
    first = torch.zeros(1, dtype=torch.long, device=x.device)

    def predictions() -> tuple[Tensor, Tensor]:
        tuned = policy.predict(x, first, conditioning)
        with policy.reference():
            return tuned, policy.predict(x, first, conditioning)

    with policy.for_once():
        tuned, base = predictions()
        if torch.equal(tuned, base):
            raise InertWeights(
                f"weights version {policy.version} predict the same noise as the base model: training has had no "
                "effect; look at train.lr, train.clip and log_ratio/clip_fraction"
            )
        if policy.merged and all_finite(tuned):
            with policy.in_float32():
                exact, exact_base = predictions()
            error, allowed = (tuned - exact).norm(), ROUNDING * (base - exact_base).norm() + FLOAT32 * exact.norm()
            if not error <= allowed:
                moved = float((exact - exact_base).norm() / exact_base.norm())
                raise RuntimeError(
                    f"weights version {policy.version}: merged into the network they predict another noise than beside "
                    f"it in float32 (off by {error:.2g}, {allowed:.2g} is rounding; the LoRA moves the prediction by "
                    f"{moved:.0%}); set sampler.exact=true, or, if training has run away, start again with a lower "
                    "train.lr"
                )
