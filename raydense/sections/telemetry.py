"""The section of a configuration that says where a run's numbers go beside its JSON lines."""

from __future__ import annotations

from typing import Literal

from raydense.sections.base import Section


class TelemetryConfig(Section):
    """Where a run's numbers go beside its JSON lines; nothing here changes a byte of the LoRA or of metrics.jsonl."""

    tensorboard: bool = True
    """Event files for TensorBoard in the run directory."""
    wandb: Literal["online", "offline"] | None = None
    """Weights & Biases, which needs the extra `raydense[wandb]`; null: not used."""
    wandb_project: str = "raydense"
    """The project there."""
    wandb_entity: str | None = None
    """The team or user there; null: the key's own."""
