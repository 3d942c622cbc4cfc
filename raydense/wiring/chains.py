"""The chains that a configuration means: of training, and of the pictures that are judged."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from raydense.config import Config


@dataclass(frozen=True)
class ChainSettings:
    """What decides a chain on a pipeline's scheduler. counted: the setting that says `count`."""

    count: int
    dynamics: str
    eta: float  # 0 of an ODE
    window: tuple[int, int] | None
    spacing: str | None
    counted: str = field(default="steps.count", compare=False)

    def __str__(self) -> str:
        window = "" if self.window is None else f", window {list(self.window)}"
        return f"{self.count} steps of {self.dynamics}, η {self.eta:g}{window}, spacing {self.spacing or 'null'}"

    def as_dict(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.compare}


def trained_by(config: Config) -> ChainSettings:
    """The chain that is learned; the configuration is resolved."""
    steps = config.steps
    return ChainSettings(steps.count, steps.dynamics or "", steps.eta, steps.window, steps.spacing)


def judged_by(config: Config) -> ChainSettings:
    """The chain by which pictures are drawn, to judge or to look at; the configuration is resolved."""
    trained, judged = trained_by(config), config.evaluate
    if judged.steps is None and judged.dynamics is None:
        return trained
    dynamics = judged.dynamics or trained.dynamics
    return replace(
        trained,
        count=judged.steps or trained.count,
        dynamics=dynamics,
        eta=0.0 if dynamics == "ode" else trained.eta,
        window=None,
        counted=trained.counted if judged.steps is None else "evaluate.steps",
    )
