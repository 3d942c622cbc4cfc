"""The typed configuration of a run: frozen, validated once, one YAML in, the resolved one out.

Its sections are in `raydense.sections`.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError, model_validator

from raydense.core.messages import one_line
from raydense.sections.base import Name, Section, Unsigned
from raydense.sections.formats import FORMAT, written_today
from raydense.sections.rewards import RewardConfig
from raydense.sections.run import (
    CheckpointConfig,
    EvaluateConfig,
    LearnerConfig,
    PolicyConfig,
    PromptsConfig,
    ReplayConfig,
    SamplerConfig,
    SamplersConfig,
    StageConfig,
    StepsConfig,
    TrainConfig,
)
from raydense.sections.telemetry import TelemetryConfig

DEFAULT_PRESET = "tiny"


class ConfigError(ValueError):
    """Bad input: a setting, a file or a resource that a run cannot start with; the message is one line a problem."""


class Config(Section):
    """A whole run."""

    name: Name = "run"
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
    replay: ReplayConfig = ReplayConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    telemetry: TelemetryConfig = TelemetryConfig()

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
        if self.learner.num_workers > (tuples := self.train.batch_tuples):
            raise ValueError(
                f"learner.num_workers={self.learner.num_workers} exceeds the {tuples} tuples of a batch "
                "(train.batch_groups x train.tuples), of which each worker takes a share; lower it"
            )
        size = self.samplers.max or self.samplers.count
        if self.samplers.autoscale and None in (size, self.samplers.num_gpus, self.learner.num_gpus):
            raise ValueError(
                "samplers.autoscale=true asks for nodes that are not there yet, so that nothing can be counted from "
                "them; set samplers.max, samplers.num_gpus and learner.num_gpus too"
            )
        return self

    @property
    def worker_tuples(self) -> int:
        """Of a batch, the most that one of the learner's workers has."""
        return math.ceil(self.train.batch_tuples / self.learner.num_workers)

    def to_yaml(self) -> str:
        values = {"format": FORMAT, **self.model_dump(mode="json")}
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


MAY_CHANGE_ON_RESUME = (
    "name",
    "samplers",
    "learner.labels",
    "learner.timeout_s",
    "replay",
    "checkpoint",
    "telemetry",
    "reward.watch",
    "stage.count",
)


def changed_config(config: Config, overrides: list[str], may_change: Sequence[str], who: str) -> Config:
    """A run's own configuration with overrides, where they may be.

    Args:
        may_change: settings or sections. who: may change only these, for the message.

    Raises: ConfigError listing what may not change, before and after.
    """
    changed = validated_config(config.model_dump(mode="json"), overrides)
    if refused := changed_settings(config, changed, may_change):
        raise ConfigError(f"{who} may change only {', '.join(may_change)}; refused: {'; '.join(refused)}")
    return changed


def changed_settings(before: Config, after: Config, leave_out: Sequence[str] = ()) -> list[str]:
    """`key: old -> new` of every setting that differs, in the order of their names.

    Args: leave_out: settings or sections that may differ.
    """
    old, new = flat_settings(before), flat_settings(after)
    return [
        f"{key}: {old.get(key)!r} -> {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not any(key == a or key.startswith(f"{a}.") for a in leave_out)
    ]


def resumed_config(config: Config, overrides: list[str]) -> Config:
    """The configuration of a run that continues. Raises: ConfigError listing what may not change, before and after."""
    allowed = [key for key in MAY_CHANGE_ON_RESUME if key != "stage.count" or config.train.no_reg_warmup_ratio == 0]
    changed = changed_config(config, overrides, allowed, "a run that continues")
    if changed.stage.count < config.stage.count:
        raise ConfigError(f"stage.count: {config.stage.count} -> {changed.stage.count}: it may only grow")
    return changed


def flat_settings(config: Config) -> dict[str, Any]:
    """Every setting under its whole name, such as `train.lr`."""
    return _flatten(config.model_dump())


def _flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix: values}
    return {k: v for key, value in values.items() for k, v in _flatten(value, f"{prefix}.{key}".lstrip(".")).items()}


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
    return validated_config(values, overrides or [])


def load_run_config(path: Path) -> Config:
    """Reads what a run wrote, as the code of its format understood it. Raises: ConfigError."""
    return validated_config({"format": 1, **_read_file(path)}, [])


def validated_config(values: dict[str, Any], overrides: list[str]) -> Config:
    """Plain values as a configuration, after `key=value` overrides. Raises: ConfigError with one line a problem."""
    try:
        values = written_today(copy.deepcopy(values))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    for override in overrides:
        _apply_override(values, override)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(item) for item in error.errors())) from None


class _UniqueKeys(yaml.SafeLoader):
    """PyYAML's safe loader, which would let the last of equal keys win in silence."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value!r} is there twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


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
        values = yaml.load(text, Loader=_UniqueKeys)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: is not valid YAML: {one_line(error)}") from None
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
    """A problem that pydantic found, as one line naming field, value and what is allowed."""
    location, names = _walk(item["loc"])
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        return f"{location} is not a setting; allowed here: {', '.join(names)}{_closest(str(item['loc'][-1]), names)}"
    if item["type"] in ("missing", "union_tag_not_found"):
        key = "" if item["type"] == "missing" else ".kind"
        return f"{location}{key} is missing; add it to the configuration"
    if item["type"] == "union_tag_invalid":
        return f"{location}.kind={item['ctx']['tag']!r}: input should be one of {item['ctx']['expected_tags']}"
    if item["type"] == "value_error":
        return f"{location}: {message}" if location else message
    return f"{location}={item['input']!r}: {message[0].lower()}{message[1:]}"


def _walk(loc: tuple[Any, ...]) -> tuple[str, list[str]]:
    """A location as the user wrote it (pydantic adds a scorer's kind to it), and the settings beside its last part."""
    shown: list[str] = []
    beside: list[type[Section]] = [Config]
    inside: list[type[Section]] = [Config]
    for part in loc:
        if tagged := [m for m in inside if "kind" in m.model_fields and part in _kinds(m)]:
            inside = tagged
            continue
        shown.append(str(part))
        if isinstance(part, str):
            beside = inside
            inside = [s for m in beside if part in m.model_fields for s in _sections(m.model_fields[part].annotation)]
    return ".".join(shown), [name for model in beside for name in model.model_fields]


def _kinds(model: type[Section]) -> tuple[Any, ...]:
    return get_args(model.model_fields["kind"].annotation)


def _sections(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for argument in get_args(annotation) for section in _sections(argument)]


def _closest(name: str, names: list[str]) -> str:
    match = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {match[0]}?)" if match else ""
