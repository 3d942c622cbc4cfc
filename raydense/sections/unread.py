"""Settings that nothing reads because of what another one is: who sets one expects that it acts, so it is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from raydense.sections.base import Section
from raydense.sections.rewards import HttpScorerConfig, RewardConfig
from raydense.sections.roles import LearnerConfig
from raydense.sections.run import PolicyConfig, ReplayConfig, TrainConfig
from raydense.sections.telemetry import TelemetryConfig

Unread = Iterator[tuple[str, str]]  # settings, and the line that refuses each


def unread_beside_others(
    policy: PolicyConfig,
    reward: RewardConfig,
    train: TrainConfig,
    learner: LearnerConfig,
    replay: ReplayConfig,
    telemetry: TelemetryConfig,
) -> Unread:
    """Of what a switch turns off."""
    if train.clip != "auto" and train.draws_steps:
        yield from changed(train, "train.clip_share", f"beside train.clip={train.clip:g}", "set train.clip=auto")
    if train.prefers and not train.reg_to_pi_init:
        yield from changed(learner, "learner.cache_references", "beside train.reg_to_pi_init=false")
    if learner.num_workers == 1:
        yield from changed(learner, "learner.timeout_s", "beside learner.num_workers=1", "raise that")
    if replay.segments is False:
        yield from changed(replay, "replay.keep_segments", "beside replay.segments=false", "set that to true")
    for judge in reward.judges:
        if isinstance(judge, HttpScorerConfig) and judge.retries < 2:
            where = f"beside its retries={judge.retries}"
            yield from changed(judge, f"scorer {judge.name}: backoff_s", where, "allow 2 or more", leaf="backoff_s")
    if telemetry.wandb is None:
        for name in ("telemetry.wandb_project", "telemetry.wandb_entity"):
            yield from changed(telemetry, name, "beside telemetry.wandb=null", "set that to online or offline")
    if policy.init_lora is None:
        yield from changed(policy, "policy.text_encoder_lora", "without policy.init_lora", "name a LoRA there")


def changed(section: Section, name: str, where: str, advice: str = "", leaf: str | None = None) -> Unread:
    """The setting, if it is not at its default. Args: leaf: of its name, where that does not end in it."""
    leaf = leaf or name.rpartition(".")[2]
    value, plain = getattr(section, leaf), type(section).model_fields[leaf].default
    if value != plain:
        instead = f"{advice}, or leave it at" if advice else "leave it at"
        yield name, f"{name}={shown(value)} is not read {where}; {instead} {shown(plain)}"


def shown(value: Any) -> str:
    """As it is written in a configuration."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
