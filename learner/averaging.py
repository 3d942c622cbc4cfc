"""θ averaged over the gradient steps: less noise than the last step has, for one more copy of the LoRA."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from raydense.core.types import PolicyWeights, averaged_version

TAKEN = "taken"  # in the state, beside the tensors' names


class MovingAverage:
    """θ̄_t = Σ_i decay^(t − i) θ_i / Σ_i decay^(t − i) over the t steps taken; before the first, θ itself.

    Exponential with the bias of its start corrected (Kingma and Ba, Adam, section 7.2), so that a decay means the same
    in runs of any length: the mean of all steps at first, later of about the last 1 / (1 − decay). The usual warm-up,
    min(decay, (1 + t) / (10 + t)), as diffusers' EMAModel has it, never reaches 0.9 in a run of 64 steps.

    Args:
        parameters: float32, which the learner's optimizer changes in place; by name.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self._parameters, self._decay, self._taken = parameters, decay, 0
        self._mean = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """After a step that was taken."""
        self._taken += 1
        newest = (1 - self._decay) / (1 - self._decay**self._taken)  # its share; the first step's is 1
        torch._foreach_lerp_(list(self._mean.values()), list(self._parameters.values()), newest)

    def weights(self, steps: int) -> PolicyWeights:
        """Args: steps: gradient steps of the run so far, those included that were skipped."""
        tensors = {name: mean.cpu().numpy().copy() for name, mean in self._mean.items()}
        return PolicyWeights.of(averaged_version(steps), tensors)

    def state_dict(self) -> dict[str, Tensor]:
        """On the CPU."""
        return {**{name: mean.cpu().clone() for name, mean in self._mean.items()}, TAKEN: torch.tensor(self._taken)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._taken = int(state[TAKEN])
        for name, mean in self._mean.items():
            mean.copy_(state[name])
