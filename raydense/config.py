"""The typed configuration of a run: frozen, validated once, one YAML in, the resolved one out.

Its sections are in `raydense.sections`; files, presets and overrides are read in `raydense.config_files`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError, model_validator

from raydense.config_files import (
    BASE,
    DEFAULT_PRESET,
    ConfigError,
    overridden,
    preset_names,
    read_file,
    read_preset,
    with_base,
)
from raydense.config_mistakes import explain_all
from raydense.sections.base import Name, Section, Unsigned
from raydense.sections.formats import FORMAT, written_today
from raydense.sections.objectives import asked_in_vain, problems, unread_by_objective
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
from raydense.sections.unread import unread_beside_others

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
    def unread(self) -> dict[str, str]:
        """Settings that nothing reads because of what others are, each with the line that refuses it."""
        by_objective = unread_by_objective(self.train, self.steps, self.learner)
        beside = unread_beside_others(self.policy, self.reward, self.train, self.learner, self.replay, self.telemetry)
        return dict([*by_objective, *beside])

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
    changed = _valid_config(config.model_dump(mode="json"), overrides)
    given = "policy.text_encoder_lora"  # which evaluations read for the LoRAs that they are given
    _refuse({name: line for name, line in changed.unread.items() if name not in (*config.unread, given)})
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
    """Reads what a run wrote, as the code of its format understood it; what nothing reads may stand.

    Raises: ConfigError.
    """
    return _valid_config({"format": 1, **read_file(path)}, [], str(path))


def validated_config(values: Mapping[str, Any], overrides: Sequence[str], source: str = "the configuration") -> Config:
    """Plain values, over those of the base that they may name, as a configuration, after `key=value` overrides.

    Args: source: what the values are of, for messages.
    Raises: ConfigError with one line a problem; a setting that nothing reads is one.
    """
    config = _valid_config(values, overrides, source)
    _refuse(config.unread)
    return config


def _refuse(unread: Mapping[str, str]) -> None:
    if unread:
        raise ConfigError("\n".join(unread.values()))


def _valid_config(values: Mapping[str, Any], overrides: Sequence[str], source: str = "the configuration") -> Config:
    try:
        whole = written_today(with_base(values, source))
    except ValueError as error:  # a ConfigError is one
        raise ConfigError(str(error)) from None
    try:
        config = Config.model_validate(overridden(whole, overrides, Config))
    except ValidationError as error:
        raise ConfigError("\n".join(explain_all(error.errors(), Config, whole, source))) from None
    if asked := [*asked_in_vain(config.train, config.steps, overrides)]:
        raise ConfigError("\n".join(asked))
    return config
