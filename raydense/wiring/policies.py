"""Kinds of models, chains, adapters and policies, as a configuration names them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

import torch
from peft import LoraConfig

from raydense.config import Config, ConfigError
from raydense.core.types import PolicyWeights
from raydense.diffusion.compiler import lacking_compiler
from raydense.diffusion.flow import Levels
from raydense.diffusion.kernel import Schedule, make_schedule
from raydense.diffusion.loading import load_policy
from raydense.diffusion.lora_files import load_lora
from raydense.diffusion.policy import Policy
from raydense.families.family import ATTENTION, Family, Texts
from raydense.families.known import family_of
from raydense.pipelines.pipeline_files import SCHEDULER, PipelineFiles, read_pipeline
from raydense.wiring.chains import ChainSettings, judged_by, trained_by

COMPILING_PAYS = 200_000  # rows of the network: for SD1.5 on an H200, twice what compiling takes as long as


def family_for(config: Config, files: PipelineFiles) -> Family:
    """The kind of model that a pipeline is, at the run's sizes."""
    policy, sampler = config.policy, config.sampler
    return family_of(
        files,
        latent_size=sampler.latent_size,
        guidance_scale=sampler.guidance_scale,
        text_tokens=policy.t5_tokens,
        stored=torch.float32 if policy.t5_dtype == "float32" else torch.float16,
    )


def read_family(config: Config, *, fetch: bool = True) -> Family:
    """As `family_for`, of `policy.model`. Args and raises: as of `read_pipeline`."""
    policy = config.policy
    return family_for(config, read_pipeline(policy.model, policy.revision, fetch=fetch, optional=policy.t5 is not None))


def resolved(config: Config, family: Family) -> Config:
    """The configuration with what it leaves to the kind of model, so that whoever reads it later takes the same."""
    steps, evaluate, policy = config.steps, config.evaluate, config.policy
    dynamics = steps.dynamics or family.dynamics[0]
    last = steps.exclude_last
    if last is None:
        last = 0 if steps.window is not None else min(family.exclude_last, steps.count - 1)
    gamma = 1.0 if config.train.objective == "trajectory_preference" else steps.gamma
    return config.model_copy(
        update={
            "policy": policy.model_copy(update={"lora_targets": policy.lora_targets or family.lora_targets}),
            "steps": steps.model_copy(update={"dynamics": dynamics, "exclude_last": last, "gamma": gamma}),
            "evaluate": evaluate.model_copy(
                update={
                    "steps": evaluate.steps or family.evaluated.steps,
                    "dynamics": evaluate.dynamics or family.evaluated.dynamics,
                }
            ),
        }
    )


def chain(config: Config, family: Family) -> Schedule:
    """Of `trained_by`. Raises: ConfigError as `make_schedule`, in one line."""
    return _schedule(trained_by(config), family)


def evaluated_chain(config: Config, family: Family) -> Schedule:
    """Of `judged_by`. Raises: as of `chain`."""
    return _schedule(judged_by(config), family)


def _schedule(settings: ChainSettings, family: Family) -> Schedule:
    try:
        return make_schedule(
            family.files[SCHEDULER] or {},
            settings.count,
            settings.eta,
            settings.spacing,
            dynamics=settings.dynamics,
            window=settings.window,
            levels=Levels(family.tokens, family.even_levels),
            counted=settings.counted,
        )
    except ValueError as error:
        raise ConfigError(f"policy.model={family.files.model}: {error}") from None


def lora_config(config: Config) -> LoraConfig:
    """The adapter in peft's terms: A normal with standard deviation 1/r, B zero (METHOD §6)."""
    policy = config.policy
    return LoraConfig(
        r=policy.lora_rank,
        lora_alpha=policy.alpha,
        init_lora_weights="gaussian",
        target_modules=list(policy.lora_targets or ATTENTION),
    )


def lora_origin(config: Config, reward: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What the LoRA file says of itself: base model, rank, alpha, reward, and a checksum of the run's settings.

    reward: what it learned from, if not from the run's scorer. The checksum leaves out what does not change the LoRA:
    its name, the fleet, how it is judged, what is kept on disk, where metrics go, and what it is watched for.
    """
    policy, scorer = config.policy, config.reward.scorer
    whole = dict.fromkeys(("name", "samplers", "replay", "checkpoint", "telemetry", "evaluate"), True)
    unread: Any = {**whole, "learner": {"labels", "timeout_s"}, "reward": {"watch"}}
    settings = config.model_dump(mode="json", exclude=unread)
    return {
        "base_model": policy.model if policy.revision is None else f"{policy.model}@{policy.revision}",
        "rank": policy.lora_rank,
        "alpha": policy.alpha,
        "reward": dict(reward or scorer.model_dump(mode="json", exclude={"batch_size", "device"})),
        "config_sha256": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
    }


def build_sampling_policy(
    config: Config, device: torch.device, files: PipelineFiles | None, *, compiled: bool = False, recorded: bool = False
) -> Policy:
    """What draws as a sampler does. Args: device: that `sampler.device` is. files: as `build_policy` has it."""
    return build_policy(
        config,
        dtype=config.sampler.dtype,
        device=device,
        with_decoder=True,
        merged=not config.sampler.exact,
        compiled=compiled,
        recorded=recorded,
        files=files,
    )


def build_policy(
    config: Config,
    *,
    dtype: str,
    device: torch.device,
    with_decoder: bool,
    with_texts: bool = True,
    merged: bool = False,
    gradient_checkpointing: bool = False,
    compiled: bool = False,
    recorded: bool = False,
    files: PipelineFiles | None = None,
) -> Policy:
    """Args: files: the pipeline's, where they have been read."""
    family = read_family(config) if files is None else family_for(config, files)
    config = resolved(config, family)
    return load_policy(
        family,
        chain(config, family),
        evaluated=evaluated_chain(config, family),
        revision=config.policy.revision,
        variant=config.policy.variant,
        t5_dtype=getattr(torch, config.policy.t5_dtype),
        t5_device=torch.device("cpu") if config.policy.t5 == "cpu" else None,
        lora=lora_config(config),
        seed=config.seed,
        dtype=getattr(torch, dtype),
        device=device,
        with_decoder=with_decoder,
        with_texts=with_texts,
        decode_batch=config.sampler.decode_batch,
        merged=merged,
        gradient_checkpointing=gradient_checkpointing,
        channels_last=config.policy.channels_last,
        compiled=compiled,
        recorded=recorded,
    )


def policy_of(
    config: Config,
    family: Family,
    network: Any,
    texts: Texts,
    vae: Any | None,
    *,
    merged: bool,
    compiled: bool,
    recorded: bool,
) -> Policy:
    """As `build_policy`, around networks that are there already, such as a benchmark's."""
    config = resolved(config, family)
    return Policy(
        family,
        network,
        texts,
        vae,
        chain(config, family),
        lora_config(config),
        config.seed,
        decode_batch=config.sampler.decode_batch,
        merged=merged,
        gradient_checkpointing=config.learner.gradient_checkpointing,
        channels_last=config.policy.channels_last,
        compiled=compiled,
        recorded=recorded,
    )


def initial_lora(
    config: Config, pipeline: PipelineFiles, shapes: Mapping[str, tuple[int, ...]], layers: Collection[str] = ()
) -> PolicyWeights:
    """The LoRA of `policy.init_lora`. Args: layers: as of `load_lora`.

    Raises: ConfigError if it is not an adapter of these shapes.
    """
    assert config.policy.init_lora is not None
    return load_lora(
        config.policy.init_lora,
        shapes,
        rank=config.policy.lora_rank,
        alpha=config.policy.alpha,
        seed=config.seed,
        text_encoder=config.policy.text_encoder_lora,
        pipeline=pipeline,
        layers=layers,
    )


def sampled_rows(config: Config, family: Family) -> int:
    """Rows of the network that a sampler computes to learn from."""
    images = config.stage.count * config.stage.groups * config.sampler.trajectories
    rows = images * config.steps.count * family.rows
    return rows // (config.samplers.max or config.samplers.count or 1)


def compiles(config: Config, device: torch.device, files: PipelineFiles | None = None) -> bool:
    """Whether the network of a sampler on this device is compiled; of an exact one, only if the learner's is.

    Args: files: as of `build_policy`.
    """
    if config.policy.compile != "auto":
        return config.policy.compile
    if device.type != "cuda" or config.sampler.exact:
        return False
    family = read_family(config, fetch=False) if files is None else family_for(config, files)
    return sampled_rows(config, family) >= COMPILING_PAYS and lacking_compiler() is None


def records(config: Config, device: torch.device) -> bool:
    """Whether small calls of a sampler on this device are CUDA graphs, as the learner's never are."""
    return device.type == "cuda" and config.policy.compile is not False and not config.sampler.exact
