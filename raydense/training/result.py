"""What a run gives: θ as of its last step, or the average of it that the learner keeps; and the files of both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raydense.config import Config
from raydense.core.interfaces import Learner
from raydense.core.types import PolicyWeights
from raydense.diffusion.lora import save_diffusers_lora
from raydense.records.run_dir import RunDirectory
from raydense.wiring.policies import lora_config, lora_origin


def result_of(learner: Learner[Any]) -> PolicyWeights:
    """What is judged, drawn and exported: the average where there is one (`train.ema`), else θ."""
    return learner.averaged() or learner.weights()


class LoraWriter:
    """The LoRA files of a run.

    Args:
        reward: what the run learns from, if not from its scorer.
        denoiser: the folder of what is trained.
    """

    def __init__(
        self, config: Config, run_dir: RunDirectory, reward: Mapping[str, str] | None, denoiser: str = "unet"
    ) -> None:
        self._dir, self._lora, self._denoiser = run_dir, lora_config(config), denoiser
        self._origin, self._ema = lora_origin(config, reward), config.train.ema

    def save(self, last: PolicyWeights, averaged: PolicyWeights | None) -> None:
        """Writes the result, and beside an average also θ as of the last step."""
        if averaged is None:
            self._write(self._dir.lora, last, self._origin)
        else:
            self._write(self._dir.lora, averaged, {**self._origin, "averaged": self._ema})
            self._write(self._dir.last_step_lora, last, self._origin)

    def _write(self, directory: Path, weights: PolicyWeights, origin: Mapping[str, Any]) -> None:
        save_diffusers_lora(directory, weights, self._lora, origin, self._denoiser)
