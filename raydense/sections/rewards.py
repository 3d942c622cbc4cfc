"""The sections of a configuration that name judges: scorers, their mixture, monitors."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from raydense.sections.base import (
    Device,
    Name,
    NetworkDtype,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Revision,
    Section,
    Unsigned,
)

ScorerName = Annotated[Name, Field(description="What logs and tables call it.")]
BatchSize = Annotated[PositiveInt, Field(description="Images scored at once.")]
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class ClipScorerConfig(Section):
    """Cosine similarity under any CLIP-type model of transformers (CLIP score, PickScore)."""

    kind: Literal["clip"]
    name: ScorerName
    model: str
    """Hub id, directory, or pkg://package/path."""
    revision: Revision = None
    batch_size: BatchSize = 64
    device: Device = "auto"


class HPSv2ScorerConfig(Section):
    """HPSv2, the paper's multi-prompt preference model."""

    kind: Literal["hpsv2"]
    name: ScorerName = "hpsv2"
    version: Literal["v2.0", "v2.1"] = "v2.0"
    """v2.0 is the paper's; their scales differ."""
    checkpoint: str | None = None
    """A local file; null: from the hub."""
    antialias: bool = False
    """Antialiasing of the bicubic resize; off, as when the paper's figures were made."""
    dtype: NetworkDtype = "float32"
    """Precision of its networks."""
    batch_size: BatchSize = 16
    device: Device = "auto"


class AestheticScorerConfig(Section):
    """The LAION aesthetic score; it ignores the prompt."""

    kind: Literal["aesthetic"]
    name: ScorerName = "aesthetic"
    head: str
    """A local file: the head's .pth."""
    clip_model: str = "openai/clip-vit-large-patch14"
    """Hub id, directory, or pkg://package/path of the CLIP model under the head."""
    revision: Revision = None
    batch_size: BatchSize = 64
    device: Device = "auto"


class ImageRewardScorerConfig(Section):
    """ImageReward, the paper's single-prompt preference model."""

    kind: Literal["imagereward"]
    name: ScorerName = "imagereward"
    checkpoint: str | None = None
    """A local ImageReward.pt; null: from the hub."""
    tokenizer: str | None = None
    """A local directory with the vocab.txt of bert-base-uncased; null: from the hub."""
    batch_size: BatchSize = 16
    device: Device = "auto"


class CallableScorerConfig(Section):
    """A user's own function of images (uint8 [N, h, w, 3]) and N prompts, which gives N numbers."""

    kind: Literal["callable"]
    name: ScorerName
    target: str
    """The function, as module:function."""

    @field_validator("target")
    @classmethod
    def _names_a_function(cls, target: str) -> str:
        if not re.fullmatch(r"[\w.]+:\w+", target):
            raise ValueError(f"expected the function as module:function, got {target!r}")
        return target


class HttpScorerConfig(Section):
    """A scorer served elsewhere: `raydense.rewards.http` says what goes over the wire."""

    kind: Literal["http"]
    name: ScorerName
    url: str
    """http://host/path or https://host/path."""
    token_env: str | None = None
    """The environment variable with a bearer token, never the token itself; null: none."""
    batch_size: BatchSize = 16
    timeout_s: PositiveFloat = 60.0
    """Seconds that an answer may take."""
    retries: Unsigned = 4
    """Times that a failed request is sent again."""
    backoff_s: NonNegativeFloat = 0.5
    """Seconds before the second retry, doubled with each one; the first is immediate."""

    @model_validator(mode="after")
    def _nothing_secret_in_sight(self) -> HttpScorerConfig:
        parts = urlsplit(self.url)
        if "@" in parts.netloc or "@" in self.url.partition("/")[0]:  # first, so that no other message shows it
            raise ValueError("url holds a user name or password, which would be logged; name a variable in token_env")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url={self.url}: expected http://host/path or https://host/path")
        if self.token_env is not None and parts.scheme == "http" and parts.hostname not in LOOPBACK:
            raise ValueError(f"url={self.url} would carry the token of token_env unencrypted; use https")
        return self


SingleScorerConfig = Annotated[
    ClipScorerConfig
    | HPSv2ScorerConfig
    | AestheticScorerConfig
    | ImageRewardScorerConfig
    | CallableScorerConfig
    | HttpScorerConfig,
    Field(discriminator="kind"),
]


class ComponentConfig(Section):
    """One scorer of a mixture."""

    weight: float
    """What its score is multiplied by; may be negative."""
    scorer: SingleScorerConfig
    """Whose scores are added."""


class MixtureScorerConfig(Section):
    """The weighted sum of other scorers, each of which is logged under its own name."""

    kind: Literal["mixture"]
    name: ScorerName = "mixture"
    normalise: Literal["none", "zscore"] = "none"
    """zscore: (score - mean) / standard deviation, of the stage before."""
    components: Annotated[tuple[ComponentConfig, ...], Field(min_length=1)]
    """What is added up."""


ScorerConfig = Annotated[
    ClipScorerConfig
    | HPSv2ScorerConfig
    | AestheticScorerConfig
    | ImageRewardScorerConfig
    | CallableScorerConfig
    | HttpScorerConfig
    | MixtureScorerConfig,
    Field(discriminator="kind"),
]


class WatchConfig(Section):
    """When a run says that its reward is being hacked, or falls (`raydense.training.watch` has the rules)."""

    sigmas: PositiveFloat = 3.0
    """Standard errors by which the reward rose and a monitor fell, or the reward fell."""
    collapse: PositiveFloat = 3.0
    """Standard deviations between the first stage's groups, by which pictures changed."""
    stop: bool = False
    """Ends the run there; else it is only said and logged."""


class RewardConfig(Section):
    """What is optimised, and what is only watched."""

    scorer: ScorerConfig
    """The scorer that training optimises."""
    monitors: tuple[SingleScorerConfig, ...] = ()
    """Scorers that are only logged, so that reward hacking shows."""
    watch: WatchConfig = WatchConfig()

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
