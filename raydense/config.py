"""The typed configuration of a run: frozen, validated once, one YAML in, the resolved one out.

Its sections are in `raydense.sections`; files, presets and overrides are read in `raydense.config_files`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError, model_validator

from raydense.config_files import (
    BASE,
    DEFAULT_PRESET,
    ConfigError,
    closest,
    overridden,
    preset_names,
    read_file,
    read_preset,
    with_base,
)
from raydense.sections.base import Name, Section, Unsigned
from raydense.sections.formats import FORMAT, written_today
from raydense.sections.objectives import asks_for_gamma, problems
from raydense.sections.rewards import RewardConfig
from raydense.sections.roles import LearnerConfig, SamplerConfig, SamplersConfig
from raydense.sections.run import (
    CheckpointConfig,
    EvaluateConfig,
    PolicyConfig,
    PromptsConfig,
    ReplayConfig,
    StageConfig,
    StepsConfig,
    TrainConfig,
)
from raydense.sections.telemetry import TelemetryConfig

__all__ = [
    "DEFAULT_PRESET",
    "MAY_CHANGE_ON_RESUME",
    "Config",
    "ConfigError",
    "changed_config",
    "changed_settings",
    "flat_settings",
    "load_config",
    "load_run_config",
    "preset_names",
    "resumed_config",
    "validated_config",
]


class Config(Section):
    """A whole run."""

    name: Name = "run"
    """What tables and Ray's dashboard call the run, and its directory where none is given."""
    seed: Unsigned = 42
    """Every random draw comes from it."""
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
            n, keep = self.train.tuple_size, self.sampler.keep
            raise ValueError(f"train.tuple_size={n} exceeds sampler.keep={keep}; lower it or keep more trajectories")
        if self.train.batch_groups > self.stage.groups:
            raise ValueError(
                f"train.batch_groups={self.train.batch_groups} exceeds the {self.stage.groups} groups of a stage; "
                "lower it or raise stage.groups"
            )
        for problem in problems(self.train, self.steps, self.sampler):
            raise ValueError(problem)
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


_OF_A_UNION = re.compile(r"constrained-|literal\[|(bool|int|float)$")  # in a location, of what may be several kinds

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


def load_config(
    path: str | os.PathLike[str] | None = None, preset: str | None = None, overrides: Sequence[str] | None = None
) -> Config:
    """Reads a YAML file or a preset (default: the embedded one), applies `key=value` overrides, validates.

    A file may name a preset as its base (`preset: tiny`) and hold only what differs; `merged` has the rule.
    Raises: ConfigError with one line a problem.
    """
    if path is None:
        return validated_config(read_preset(preset or DEFAULT_PRESET, "--preset"), overrides or [])
    if preset is not None:
        raise ConfigError(
            f"{path} and --preset={preset}: give one, not both; a file names its base by `{BASE}: {preset}` at its top"
        )
    return validated_config(read_file(Path(path)), overrides or [], str(path))


def load_run_config(path: Path) -> Config:
    """Reads what a run wrote, as the code of its format understood it. Raises: ConfigError."""
    return validated_config({"format": 1, **read_file(path)}, [], str(path))


def validated_config(values: Mapping[str, Any], overrides: Sequence[str], source: str = "the configuration") -> Config:
    """Plain values, over those of the base that they may name, as a configuration, after `key=value` overrides.

    Args: source: what the values are of, for messages. Raises: ConfigError with one line a problem.
    """
    try:
        whole = written_today(with_base(values, source))
    except ValueError as error:  # a ConfigError is one
        raise ConfigError(str(error)) from None
    try:
        config = Config.model_validate(overridden(whole, overrides, Config))
    except ValidationError as error:
        raise ConfigError("\n".join(_explain_all(error.errors(), whole, source))) from None
    if problem := asks_for_gamma(config.train, config.steps, overrides):
        raise ConfigError(problem)
    return config


def _explain_all(problems: Iterable[Any], whole: Mapping[str, Any], source: str) -> Iterator[str]:
    """A line for all that is missing, and one for each other problem that pydantic found."""
    missing = []
    for item in _one_of_each(problems):
        if item["type"] in ("missing", "union_tag_not_found"):
            missing.append(_walk(item["loc"])[0] + (".kind" if item["type"] != "missing" else ""))
        else:
            yield _explain(item)
    lacking = [name for name in missing if name.count(".") < 2 and not _has(whole, name)]
    them = "it" if len(missing) == 1 else "them"
    if lacking:
        supplied = them if lacking == missing else ", ".join(lacking)
        yield (
            f"{source} lacks {', '.join(missing)}; add {them}, or put `{BASE}: {DEFAULT_PRESET}` at its top, "
            f"which supplies {supplied}"
        )
    elif missing:
        verb = "is" if len(missing) == 1 else "are"
        yield f"{', '.join(missing)} {verb} missing; add {them} to the configuration"


def _one_of_each(problems: Iterable[Any]) -> list[Any]:
    """Pydantic tells of each kind of value that a setting may have why it is not that: here one problem a setting."""
    found: dict[tuple[Any, ...], Any] = {}
    for item in problems:
        loc = tuple(part for part in item["loc"] if not (isinstance(part, str) and _OF_A_UNION.match(part)))
        if loc in found:
            found[loc]["msg"] += f", or {item['msg'].removeprefix('Input should be ')}"
        else:
            found[loc] = {**item, "loc": loc}
    return list(found.values())


def _has(values: Any, name: str) -> bool:
    for part in name.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return False
        values = values[part]
    return True


def _explain(item: Any) -> str:
    """A problem, as one line naming field, value and what is allowed."""
    location, names = _walk(item["loc"])
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        return f"{location} is not a setting; allowed here: {', '.join(names)}{closest(str(item['loc'][-1]), names)}"
    if item["type"] == "union_tag_invalid":
        return f"{location}.kind={item['ctx']['tag']!r}: input should be one of {item['ctx']['expected_tags']}"
    if item["input"] is None and item["type"] in ("model_type", "model_attributes_type"):
        return f"{location} is empty; give its settings, or remove it where a base has them"
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
