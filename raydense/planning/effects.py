"""What is set and cannot act on the model at hand: refused, or where a preset may have it, told at the start."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from raydense.config import Config, ConfigError
from raydense.diffusion.kernel import DDIM
from raydense.families.family import Family
from raydense.pipelines.pipeline_files import local_directory
from raydense.records.segments import AUTOMATIC_BYTES, is_written
from raydense.sections.rewards import AestheticScorerConfig, ClipScorerConfig
from raydense.sections.run import PolicyConfig

T5_DEFAULTS = {key: PolicyConfig.model_fields[key].default for key in ("t5", "t5_dtype", "t5_tokens")}


def check_effects(config: Config, family: Family) -> None:
    """Raises: ConfigError if something is set that cannot act on such a model."""
    kind, policy, scale = f"a {family.files.kind}", config.policy, config.sampler.guidance_scale
    _check_t5(policy, family, kind)
    if policy.channels_last and family.layout.denoiser != "unet":
        raise ConfigError(f"policy.channels_last=true: {kind} has no U-Net, whose layout it is; leave it false")
    if config.steps.spacing is not None and DDIM not in family.dynamics:
        raise ConfigError(
            f"steps.spacing={config.steps.spacing}: the scheduler of {kind} spaces its noise levels; leave it null"
        )
    if scale != 1 and not family.takes_guidance:
        raise ConfigError(f"sampler.guidance_scale={scale:g}: this {family.files.kind} takes no guidance; set it to 1")


def _check_t5(policy: PolicyConfig, family: Family, kind: str) -> None:
    """Raises: ConfigError if one is to be left out that cannot be, or to read nothing, or if there is none to set."""
    if not family.layout.has_t5:
        for key, default in T5_DEFAULTS.items():
            if (value := getattr(policy, key)) != default:
                shown, ours = ("null" if it is None else it for it in (value, default))
                raise ConfigError(f"policy.{key}={shown}: {kind} has no T5; leave it {ours}")
    present = [part for part in family.files.networks if family.files.is_t5(part)]
    needed = [part for part in present if part not in family.layout.optional]
    if policy.t5 is None and needed:
        raise ConfigError(f"policy.t5=null: {kind} cannot do without its {needed[0]}; set device or cpu")
    if policy.t5 == "cpu" and not present:
        raise ConfigError(f"policy.t5=cpu: this {family.files.kind} comes without its T5; leave it device")
    if policy.t5_tokens == 0 and present:
        raise ConfigError(f"policy.t5_tokens=0: its {present[0]} reads at least 1; raise it, or leave it null")


def idle_notes(config: Config) -> Iterator[str]:
    """Of what has no effect here, though somebody or a preset has set it. Args: config: resolved."""
    steps, policy = config.steps, config.policy
    last = steps.exclude_last or 0
    if steps.window is not None and 0 < last <= steps.count - steps.window[1]:
        yield (
            f"steps.exclude_last={last} leaves nothing out: steps.window={list(steps.window)} ends before the last "
            f"{last} of {steps.count} steps"
        )
    located = [("policy.revision", "policy.model", policy.model, policy.revision)]
    for judge in config.reward.judges:
        if isinstance(judge, ClipScorerConfig | AestheticScorerConfig):
            key = "model" if isinstance(judge, ClipScorerConfig) else "clip_model"
            whose = f"scorer {judge.name}: "
            located.append((f"{whose}revision", f"{whose}{key}", getattr(judge, key), judge.revision))
    for setting, named, location, revision in located:
        if revision is not None and local_directory(named, location) is not None:
            yield f"{setting}={revision} is not read: {location} is a directory"


def idle_in_training(config: Config) -> Iterator[str]:
    """Of what changes nothing in a run, as above; who only draws or judges need not know."""
    stage, train, keep = config.stage, config.train, config.sampler.keep
    if stage.count == 1 and stage.schedule == "overlapped":
        yield "stage.schedule=overlapped overlaps nothing: stage.count=1"
    if train.tuple_choice == "best_worst" and train.tuple_size == keep:
        yield f"train.tuple_choice=best_worst chooses nothing: train.tuple_size={keep} takes all of sampler.keep"
    total, every = stage.count * stage.steps, config.evaluate.every_steps
    if every is not None and every >= total:
        yield f"evaluate.every_steps={every} adds nothing: the run ends after {total} steps, and is judged then anyway"
    often = config.checkpoint.every_steps
    if often is not None and (often >= total or often % stage.steps == 0):
        yield f"checkpoint.every_steps={often} adds nothing: a stage ends with a checkpoint, stage.steps={stage.steps}"


def idle_overrides(overrides: Sequence[str], local: bool) -> Iterator[str]:
    """Of what was asked for by hand. Args: overrides: `KEY=VALUE`."""
    for override in overrides:
        name = override.partition("=")[0].strip()
        if local and name.partition(".")[0] == "samplers":
            yield f"{name} is not read: --local draws in this process, without sampler actors"


def check_kept(config: Config, a_group: int) -> None:
    """Raises: ConfigError if segments are to be kept that nobody writes. Args: a_group: its bytes."""
    replay = config.replay
    if replay.keep_segments and replay.segments is None and not is_written(a_group, replay.segments):
        raise ConfigError(
            f"replay.keep_segments=true keeps nothing: replay.segments=null writes groups of {AUTOMATIC_BYTES} bytes "
            f"or more, and one of this run has {a_group}; set replay.segments=true too"
        )
