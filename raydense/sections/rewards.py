"""The sections of a configuration that name judges: scorers, their mixture, monitors."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from raydense.sections.base import Device, NetworkDtype, PositiveInt, Section


class ClipScorerConfig(Section):
    """Cosine similarity under any CLIP-type model (CLIP score, PickScore)."""

    kind: Literal["clip"]
    name: str
    model: str  # hub id, directory or pkg://…
    revision: str | None = None
    batch_size: PositiveInt = 64
    device: Device = "auto"


class HPSv2ScorerConfig(Section):
    """HPSv2, the paper's multi-prompt preference model."""

    kind: Literal["hpsv2"]
    name: str = "hpsv2"
    version: Literal["v2.0", "v2.1"] = "v2.0"
    checkpoint: str | None = None  # a local file; None: from the hub
    antialias: bool = False  # of the bicubic resize; off, as when the paper's figures were made
    dtype: NetworkDtype = "float32"
    batch_size: PositiveInt = 16
    device: Device = "auto"


class AestheticScorerConfig(Section):
    """The LAION aesthetic score; it ignores the prompt."""

    kind: Literal["aesthetic"]
    name: str = "aesthetic"
    head: str  # a local file
    clip_model: str = "openai/clip-vit-large-patch14"
    revision: str | None = None
    batch_size: PositiveInt = 64
    device: Device = "auto"


class ImageRewardScorerConfig(Section):
    """ImageReward, the paper's single-prompt preference model."""

    kind: Literal["imagereward"]
    name: str = "imagereward"
    checkpoint: str | None = None  # a local ImageReward.pt; None: from the hub
    tokenizer: str | None = None  # a local directory with the vocab.txt of bert-base-uncased; None: from the hub
    batch_size: PositiveInt = 16
    device: Device = "auto"


class CallableScorerConfig(Section):
    """A user's own function of (images, prompts)."""

    kind: Literal["callable"]
    name: str
    target: str  # module:function

    @field_validator("target")
    @classmethod
    def _names_a_function(cls, target: str) -> str:
        if not re.fullmatch(r"[\w.]+:\w+", target):
            raise ValueError(f"expected the function as module:function, got {target!r}")
        return target


SingleScorerConfig = Annotated[
    ClipScorerConfig | HPSv2ScorerConfig | AestheticScorerConfig | ImageRewardScorerConfig | CallableScorerConfig,
    Field(discriminator="kind"),
]


class ComponentConfig(Section):
    """One scorer of a mixture."""

    weight: float
    scorer: SingleScorerConfig


class MixtureScorerConfig(Section):
    """The weighted sum of other scorers, each of which is logged under its own name."""

    kind: Literal["mixture"]
    name: str = "mixture"
    components: Annotated[tuple[ComponentConfig, ...], Field(min_length=1)]


ScorerConfig = Annotated[
    ClipScorerConfig
    | HPSv2ScorerConfig
    | AestheticScorerConfig
    | ImageRewardScorerConfig
    | CallableScorerConfig
    | MixtureScorerConfig,
    Field(discriminator="kind"),
]


class RewardConfig(Section):
    """What is optimised, and what is only watched."""

    scorer: ScorerConfig
    monitors: tuple[SingleScorerConfig, ...] = ()

    @property
    def judges(self) -> tuple[SingleScorerConfig, ...]:
        """Every model that scores: the scorer, or a mixture's components, then the monitors."""
        if self.scorer.kind == "mixture":
            return (*(component.scorer for component in self.scorer.components), *self.monitors)
        return (self.scorer, *self.monitors)

    @model_validator(mode="after")
    def _names_differ(self) -> RewardConfig:
        mixture = [self.scorer.name] if self.scorer.kind == "mixture" else []
        names = [*mixture, *(judge.name for judge in self.judges)]
        if len(set(names)) < len(names):
            raise ValueError(f"scorer names must differ, got {names}")
        return self
