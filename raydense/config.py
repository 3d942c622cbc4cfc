"""The typed configuration of a run: frozen, validated once, one YAML in, the resolved one out.

Letters in comments are the paper's (T steps, R rolled out, K kept, N_step draws, C, γ, δ).
"""

from __future__ import annotations

import contextlib
import difflib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

DEFAULT_PRESET = "tiny"

PositiveInt = Annotated[int, Field(ge=1)]
Unsigned = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
NetworkDtype = Literal["float32", "bfloat16", "float16"]


class ConfigError(ValueError):
    """A configuration that cannot run; the message is one line a field."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, protected_namespaces=())


class PolicyConfig(_Section):
    """The diffusion pipeline and its LoRA."""

    model: str  # hub id, directory, or pkg://package/path
    revision: str | None = None
    lora_rank: PositiveInt = 4
    lora_alpha: PositiveFloat | None = None  # None: equal to the rank
    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")


class PromptsConfig(_Section):
    """Text files, one prompt a line: a path or pkg://package/path."""

    train: str
    unseen: str | None = None


class ScorerConfig(_Section):
    """One scorer: `clip` (any CLIP-type model) or `callable` (module:function)."""

    kind: Literal["clip", "callable"]
    name: str
    model: str | None = None  # clip: hub id, directory or pkg://…
    revision: str | None = None
    target: str | None = None  # callable: module:function
    batch_size: PositiveInt = 64
    device: str = "auto"

    @model_validator(mode="after")
    def _needs_its_source(self) -> ScorerConfig:
        if self.kind == "clip" and not self.model:
            raise ValueError("a scorer of kind 'clip' needs 'model' (hub id, directory or pkg://…)")
        if self.kind == "callable" and (not self.target or ":" not in self.target):
            raise ValueError(f"a scorer of kind 'callable' needs 'target' as module:function, got {self.target!r}")
        return self


class RewardConfig(_Section):
    """What is optimised, and what is only watched."""

    scorer: ScorerConfig
    monitors: tuple[ScorerConfig, ...] = ()

    @model_validator(mode="after")
    def _names_differ(self) -> RewardConfig:
        names = [self.scorer.name, *(m.name for m in self.monitors)]
        if len(set(names)) < len(names):
            raise ValueError(f"scorer names must differ, got {names}")
        return self


class StepsConfig(_Section):
    """The denoising chain, and how the loss draws steps from it (METHOD §3-4)."""

    count: PositiveInt = 50  # T
    eta: Annotated[float, Field(gt=0, le=1)] = 1.0
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.9
    draws: PositiveInt = 1  # N_step
    exclude_last: Unsigned = 0

    @model_validator(mode="after")
    def _some_step_left(self) -> StepsConfig:
        if self.exclude_last >= self.count:
            raise ValueError(
                f"exclude_last={self.exclude_last} leaves no step of count={self.count}; lower exclude_last"
            )
        return self


class SamplerConfig(_Section):
    """What one sampler does with a work unit."""

    trajectories: PositiveInt = 5  # R
    keep: Annotated[int, Field(ge=2)] = 5  # K
    unit_prompts: PositiveInt = 1
    guidance_scale: PositiveFloat = 7.5  # w
    shared_noise: bool = False  # one x_0 for all trajectories of a group
    latent_size: PositiveInt | None = None  # None: the pipeline's own
    storage_dtype: Literal["float16", "float32"] = "float16"
    dtype: NetworkDtype = "float32"
    device: str = "auto"
    threads: PositiveInt = 1

    @model_validator(mode="after")
    def _keep_fits(self) -> SamplerConfig:
        if self.keep > self.trajectories:
            raise ValueError(f"keep={self.keep} exceeds trajectories={self.trajectories}; lower keep")
        return self


class SamplersConfig(_Section):
    """The fleet: how many sampler actors, and what each reserves of the cluster."""

    count: PositiveInt = 1
    num_cpus: NonNegativeFloat = 1.0
    num_gpus: NonNegativeFloat = 0.0


class StageConfig(_Section):
    """Algorithm 1's outer loop."""

    count: PositiveInt
    groups: PositiveInt  # trajectory groups collected a stage
    steps: PositiveInt  # gradient steps a stage (M)


class TrainConfig(_Section):
    """The loss and the optimizer (METHOD §4)."""

    batch_groups: PositiveInt
    tuple_size: Annotated[int, Field(ge=2)] = 2
    tuples: PositiveInt = 1  # tuples drawn from each group of a batch
    tuple_choice: Literal["random", "best_worst"] = "random"
    c: PositiveFloat = 10.0
    clip: PositiveFloat = 1e-4  # δ
    reg_to_pi_init: bool = True
    reg_to_pi_old: bool = False
    no_reg_warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    lr: PositiveFloat
    weight_decay: NonNegativeFloat = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    max_grad_norm: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _some_reference(self) -> TrainConfig:
        if not (self.reg_to_pi_init or self.reg_to_pi_old):
            raise ValueError("reg_to_pi_init and reg_to_pi_old are both false; the loss needs a reference policy")
        return self


class LearnerConfig(_Section):
    """Where and how the learner computes."""

    micro_batch: PositiveInt | None = None  # tuples a U-Net call; None: the whole batch
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "auto"
    threads: PositiveInt = 1
    num_cpus: NonNegativeFloat = 1.0
    num_gpus: NonNegativeFloat = 0.0


class EvaluateConfig(_Section):
    """Fixed-seed judging of the base and the tuned model."""

    prompts: PositiveInt = 32  # of each prompt set, evenly spaced through it
    images_per_prompt: PositiveInt = 4
    grid_prompts: PositiveInt = 6  # a row of the image grids each
    grid_images: PositiveInt = 4  # a column of the image grids each


class Config(_Section):
    """A whole run."""

    name: str = "run"
    seed: Unsigned = 42
    policy: PolicyConfig
    prompts: PromptsConfig
    reward: RewardConfig
    steps: StepsConfig
    sampler: SamplerConfig
    samplers: SamplersConfig = SamplersConfig()
    stage: StageConfig
    train: TrainConfig
    learner: LearnerConfig = LearnerConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _parts_fit(self) -> Config:
        if self.train.tuple_size > self.sampler.keep:
            raise ValueError(
                f"train.tuple_size={self.train.tuple_size} exceeds sampler.keep={self.sampler.keep}; "
                "lower it or keep more trajectories"
            )
        if self.train.batch_groups > self.stage.groups:
            raise ValueError(
                f"train.batch_groups={self.train.batch_groups} exceeds the {self.stage.groups} groups of a stage; "
                "lower it or raise stage.groups"
            )
        return self

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def preset_names() -> list[str]:
    """Names of the presets in the package, sorted."""
    return sorted(p.name[:-5] for p in resources.files("raydense.presets").iterdir() if p.name.endswith(".yaml"))


def load_config(path: Path | None = None, preset: str | None = None, overrides: list[str] | None = None) -> Config:
    """Reads a YAML file or a preset (default: the embedded one), applies `key=value` overrides, validates.

    Raises: ConfigError with one line a problem.
    """
    if path is not None and preset is not None:
        raise ConfigError("give a configuration file or --preset, not both")
    values = _read_file(path) if path is not None else _read_preset(preset or DEFAULT_PRESET)
    for override in overrides or []:
        _apply_override(values, override)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(item) for item in error.errors())) from None


def _read_preset(name: str) -> dict[str, Any]:
    if name not in preset_names():
        raise ConfigError(
            f"--preset={name} is unknown; allowed: {', '.join(preset_names())}{_closest(name, preset_names())}"
        )
    return _parse(resources.files("raydense.presets").joinpath(f"{name}.yaml").read_text("utf-8"), f"preset {name}")


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return _parse(path.read_text("utf-8"), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give an existing YAML file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text; save it as UTF-8") from None


def _parse(text: str, source: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: must be a mapping of sections, got {type(values).__name__}")
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override!r}: expected key=value, such as --set seed=1")
    *parents, leaf = key.strip().split(".")
    node: Any = values
    for parent in parents:
        node = node.setdefault(parent, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override!r}: {parent} is not a section")
    try:
        node[leaf] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override!r}: the value is not valid YAML") from None
    if isinstance(node[leaf], str):  # YAML reads 1e-4 as text
        with contextlib.suppress(ValueError):
            node[leaf] = float(text)


def _explain(item: Any) -> str:
    location = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        names = _fields_at(item["loc"][:-1])
        return f"{location} is not a setting; allowed here: {', '.join(names)}{_closest(str(item['loc'][-1]), names)}"
    if item["type"] == "missing":
        return f"{location} is missing; add it to the configuration"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{location}: {message}" if location else message
    return f"{location}={item['input']!r}: {message[0].lower()}{message[1:]}"


def _fields_at(loc: tuple[Any, ...]) -> list[str]:
    model: Any = Config
    for part in loc:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        model = next((a for a in get_args(annotation) if isinstance(a, type)), annotation)
    return list(model.model_fields)


def _closest(name: str, names: list[str]) -> str:
    match = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {match[0]}?)" if match else ""
