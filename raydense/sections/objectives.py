"""What an objective demands of the other settings, and which it does not read: nothing that is set is passed over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from raydense.sections.roles import SamplerConfig
from raydense.sections.run import StepsConfig, TrainConfig


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
    for name, value, plain in _unread(train, steps):
        if value != plain:
            shown = str(value).lower() if isinstance(value, bool) else value
            yield f"{name}={shown} is not read by train.objective={train.objective}; leave it at {str(plain).lower()}"


def asks_for_gamma(train: TrainConfig, steps: StepsConfig, overrides: Sequence[str]) -> str | None:
    """What is wrong with a γ that somebody set beside an objective that has its own."""
    asked = any(override.partition("=")[0].strip() == "steps.gamma" for override in overrides)
    if not asked or train.objective != "trajectory_preference" or steps.gamma == 1:
        return None
    return (
        f"steps.gamma={steps.gamma:g}: train.objective=trajectory_preference is γ = 1; leave steps.gamma out, or set "
        "train.objective=dense_preference"
    )


def _unread(train: TrainConfig, steps: StepsConfig) -> Iterator[tuple[str, object, object]]:
    """Settings that the objective does not read, which no preset sets, with their defaults."""
    if not train.prefers:
        yield "train.reg_to_pi_init", train.reg_to_pi_init, True
        yield "train.reg_to_pi_old", train.reg_to_pi_old, False
        yield "train.no_reg_warmup_ratio", train.no_reg_warmup_ratio, 0.0
        yield "steps.balance", steps.balance, "none"
    if train.objective != "policy_gradient":
        yield "train.kl", train.kl, 0.0
    if train.objective != "diffusion_dpo":
        yield "train.dpo_beta", train.dpo_beta, TrainConfig.model_fields["dpo_beta"].default
