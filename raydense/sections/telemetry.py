"""The section of a configuration that says where a run's numbers go beside its JSON lines."""

from __future__ import annotations

from typing import Literal

from raydense.sections.base import Section


class TelemetryConfig(Section):
    """Nothing here changes a byte of the LoRA or of metrics.jsonl."""

    tensorboard: bool = True  # event files in the run directory
    wandb: Literal["online", "offline"] | None = None  # Weights & Biases; needs the extra `raydense[wandb]`
    wandb_project: str = "raydense"
    wandb_entity: str | None = None  # None: the key's own
