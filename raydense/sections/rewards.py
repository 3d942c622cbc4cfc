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
    Section,
    Unsigned,
)

LOOPBACK = ("localhost", "127.0.0.1", "::1")


class ClipScorerConfig(Section):
    """Cosine similarity under any CLIP-type model (CLIP score, PickScore)."""

    kind: Literal["clip"]
    name: Name
    model: str  # hub id, directory or pkg://…
    revision: str | None = None
    batch_size: PositiveInt = 64
    device: Device = "auto"


class HPSv2ScorerConfig(Section):
    """HPSv2, the paper's multi-prompt preference model."""

    kind: Literal["hpsv2"]
    name: Name = "hpsv2"
    version: Literal["v2.0", "v2.1"] = "v2.0"
    checkpoint: str | None = None  # a local file; None: from the hub
    antialias: bool = False  # of the bicubic resize; off, as when the paper's figures were made
    dtype: NetworkDtype = "float32"
    batch_size: PositiveInt = 16
    device: Device = "auto"


class AestheticScorerConfig(Section):
    """The LAION aesthetic score; it ignores the prompt."""

    kind: Literal["aesthetic"]
    name: Name = "aesthetic"
    head: str  # a local file
    clip_model: str = "openai/clip-vit-large-patch14"
    revision: str | None = None
    batch_size: PositiveInt = 64
    device: Device = "auto"


class ImageRewardScorerConfig(Section):
    """ImageReward, the paper's single-prompt preference model."""

    kind: Literal["imagereward"]
    name: Name = "imagereward"
    checkpoint: str | None = None  # a local ImageReward.pt; None: from the hub
    tokenizer: str | None = None  # a local directory with the vocab.txt of bert-base-uncased; None: from the hub
    batch_size: PositiveInt = 16
    device: Device = "auto"


class CallableScorerConfig(Section):
    """A user's own function of (images, prompts)."""

    kind: Literal["callable"]
    name: Name
    target: str  # module:function

    @field_validator("target")
    @classmethod
    def _names_a_function(cls, target: str) -> str:
        if not re.fullmatch(r"[\w.]+:\w+", target):
            raise ValueError(f"expected the function as module:function, got {target!r}")
        return target


class HttpScorerConfig(Section):
    """A scorer served elsewhere: `raydense.rewards.http` says what goes over the wire."""

    kind: Literal["http"]
    name: Name
    url: str
    token_env: str | None = None  # the environment variable with a bearer token; never the token itself
    batch_size: PositiveInt = 16
    timeout_s: PositiveFloat = 60.0
    retries: Unsigned = 4
    backoff_s: NonNegativeFloat = 0.5  # doubles with each retry

    @model_validator(mode="after")
    def _nothing_secret_in_sight(self) -> HttpScorerConfig:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url={self.url}: expected http://host/path or https://host/path")
        if parts.username or parts.password:
            raise ValueError("url holds a user name or password, which would be logged; name a variable in token_env")
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
    scorer: SingleScorerConfig


class MixtureScorerConfig(Section):
    """The weighted sum of other scorers, each of which is logged under its own name."""

    kind: Literal["mixture"]
    name: Name = "mixture"
    normalise: Literal["none", "zscore"] = "none"  # zscore: (score - mean) / std, of the stage before
    components: Annotated[tuple[ComponentConfig, ...], Field(min_length=1)]


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
    """When a run suspects that its reward is being hacked (`raydense.training.watch` has the rule)."""

    sigmas: PositiveFloat = 3.0  # standard errors, by which the reward rose and a monitor fell
    collapse: PositiveFloat = 3.0  # standard deviations between the first stage's groups, by which pictures changed
    stop: bool = False  # the run, where it is suspected; else it is only said and logged


class RewardConfig(Section):
    """What is optimised, and what is only watched."""

    scorer: ScorerConfig
    monitors: tuple[SingleScorerConfig, ...] = ()
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
