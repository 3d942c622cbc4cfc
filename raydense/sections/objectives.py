"""What an objective demands of the other settings, and which it does not read: nothing that is set is passed over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from raydense.sections.roles import LearnerConfig, SamplerConfig
from raydense.sections.run import Objective, StepsConfig, TrainConfig
from raydense.sections.unread import Unread, changed, shown
from raydense.sections.values import read_value

OWN_OF_PRESETS: Mapping[Objective, Sequence[str]] = {  # which an objective does not read, though a preset may have them
    "trajectory_preference": ("steps.gamma",),
    "policy_gradient": ("train.c", "train.ties"),
    "diffusion_dpo": ("train.c", "train.clip", "steps.gamma"),
}


def problems(train: TrainConfig, steps: StepsConfig, sampler: SamplerConfig) -> Iterator[str]:
    """What does not fit, a line each."""
    if train.needs_old and not sampler.exact:
        what = "reg_to_pi_old=true" if train.reg_to_pi_old else f"objective={train.objective}"
        yield (
            f"train.{what} needs log-probabilities that the sampler computes as the learner does; "
            "set sampler.exact=true too"
        )
    if train.objective == "diffusion_dpo" and train.tuple_size != 2:
        yield f"train.tuple_size={train.tuple_size}: train.objective=diffusion_dpo learns from pairs; set it to 2"


def unread_by_objective(train: TrainConfig, steps: StepsConfig, learner: LearnerConfig) -> Unread:
    """Of what no preset sets; `asked_in_vain` has the rest."""
    where = f"by train.objective={train.objective}"
    if not train.prefers:
        yield from changed(train, "train.reg_to_pi_init", where)
        yield from changed(train, "train.reg_to_pi_old", where)
        yield from changed(train, "train.no_reg_warmup_ratio", where)
        yield from changed(steps, "steps.balance", where)
        yield from changed(learner, "learner.cache_references", where)
    if not train.draws_steps:
        yield from changed(train, "train.clip_share", where)
    if train.objective != "policy_gradient":
        yield from changed(train, "train.kl", where)
    if train.objective != "diffusion_dpo":
        yield from changed(train, "train.dpo_beta", where)


def asked_in_vain(train: TrainConfig, steps: StepsConfig, overrides: Sequence[str]) -> Iterator[str]:
    """What somebody set beside an objective that has its own, or none; a preset's or a file's own value may stand."""
    asked = {name for override in overrides for name in _names(override)}
    for name in OWN_OF_PRESETS.get(train.objective, ()):
        section, _, leaf = name.partition(".")
        value = getattr(train if section == "train" else steps, leaf)
        its_own = train.objective == "trajectory_preference"  # γ = 1
        if name in asked and not (its_own and value == 1):
            objective = f"train.objective={train.objective}"
            said = f"{objective} is γ = 1" if its_own else f"{objective} does not read it"
            yield f"{name}={shown(value)}: {said}; leave it out, or set train.objective=dense_preference"


def _names(override: str) -> Iterator[str]:
    """The settings of `key=value`, whose value may be a whole section."""
    key, _, text = override.partition("=")
    try:
        value = read_value(text)
    except ValueError:  # a text, which needs no quotes where the setting is one
        value = text
    yield key.strip()
    if isinstance(value, dict):
        yield from (f"{key.strip()}.{leaf}" for leaf in value)
