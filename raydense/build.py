"""The wiring: the only place that turns a config into components."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from peft import LoraConfig

from actors.sampler import DiffusionSampler
from learner.batch_source import BatchSource
from learner.gang import Gang
from learner.losses import loss_scale, step_weights
from learner.references import ReferenceCache
from learner.sgd_learner import SGDLearner
from raydense.config import Config, ConfigError
from raydense.core.interfaces import Scorer
from raydense.core.replay import ReplayBuffer
from raydense.core.threads import cpu_threads
from raydense.core.types import PolicyWeights, TrajectoryGroup
from raydense.diffusion.compiler import lacking_compiler
from raydense.diffusion.lean import keep_less
from raydense.diffusion.lora_files import load_lora
from raydense.diffusion.policy import Policy, load_policy
from raydense.diffusion.stable_diffusion import latent_height_and_width
from raydense.rewards.mixture import MixtureScorer
from raydense.sections.rewards import ScorerConfig

Handle = TypeVar("Handle")
COMPILING_PAYS = 200_000  # rows of the U-Net: for SD1.5 on an H200, twice what compiling takes as long as


def resolve_device(name: str, setting: str) -> torch.device:
    """`auto`: the GPU that this process sees, else the CPU. A GPU has its number: one device, one name.

    Args: setting: that names it. Raises: ConfigError if this process has no such device.
    """
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if seen else "cpu"
    device = torch.device("cuda", 0) if name == "cuda" else torch.device(name)
    if device.type == "cuda" and device.index >= seen:
        here = "1 GPU, cuda:0" if seen == 1 else f"{seen} GPUs, up to cuda:{seen - 1}" if seen else "no GPU"
        raise ConfigError(f"{setting}={name}: this process sees {here}; set auto or cpu, or run where there is one")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"{setting}={name}: this process sees no GPU of Apple's; set auto or cpu")
    return device


def lora_config(config: Config) -> LoraConfig:
    """The adapter in peft's terms: A normal with standard deviation 1/r, B zero (METHOD §6)."""
    policy = config.policy
    return LoraConfig(
        r=policy.lora_rank,
        lora_alpha=policy.alpha,
        init_lora_weights="gaussian",
        target_modules=list(policy.lora_targets),
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


def build_policy(
    config: Config,
    *,
    dtype: str,
    device: torch.device,
    with_decoder: bool,
    merged: bool = False,
    gradient_checkpointing: bool = False,
    compiled: bool = False,
    recorded: bool = False,
) -> Policy:
    return load_policy(
        config.policy.model,
        revision=config.policy.revision,
        variant=config.policy.variant,
        num_steps=config.steps.count,
        eta=config.steps.eta,
        spacing=config.steps.spacing,
        guidance_scale=config.sampler.guidance_scale,
        lora=lora_config(config),
        seed=config.seed,
        dtype=getattr(torch, dtype),
        device=device,
        with_decoder=with_decoder,
        decode_batch=config.sampler.decode_batch,
        merged=merged,
        gradient_checkpointing=gradient_checkpointing,
        channels_last=config.policy.channels_last,
        compiled=compiled,
        recorded=recorded,
    )


def initial_lora(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> PolicyWeights:
    """The LoRA of `policy.init_lora`. Raises: ConfigError if it is not an adapter of these shapes."""
    assert config.policy.init_lora is not None
    return load_lora(
        config.policy.init_lora,
        shapes,
        rank=config.policy.lora_rank,
        alpha=config.policy.alpha,
        seed=config.seed,
        text_encoder=config.policy.text_encoder_lora,
    )


def build_scorer(config: ScorerConfig) -> Scorer:
    """Builds one scorer; its module is imported only here, when it is the chosen one."""
    if config.kind == "mixture":
        components = [build_scorer(component.scorer) for component in config.components]
        weights = {component.scorer.name: component.weight for component in config.components}
        return MixtureScorer(config.name, components, weights)
    if config.kind == "callable":
        from raydense.rewards.function import FunctionScorer

        return FunctionScorer(config.name, config.target)
    if config.kind == "http":
        from raydense.rewards.http import HttpScorer

        return HttpScorer(**config.model_dump(exclude={"kind"}))
    options: dict[str, Any] = config.model_dump(exclude={"kind", "device"})
    options["device"] = resolve_device(config.device, f"scorer {config.name}: device")
    if config.kind == "clip":
        from raydense.rewards.clip import load_clip_scorer

        return load_clip_scorer(**options)
    if config.kind == "aesthetic":
        from raydense.rewards.aesthetic import AestheticScorer

        return AestheticScorer(**options)
    if config.kind == "imagereward":
        from raydense.rewards.imagereward import ImageRewardScorer

        return ImageRewardScorer(**options)
    from raydense.rewards.hpsv2 import HPSv2Scorer

    return HPSv2Scorer(**{**options, "dtype": getattr(torch, config.dtype)})


def build_sampler(config: Config, name: str = "local") -> DiffusionSampler:
    device = resolve_device(config.sampler.device, "sampler.device")
    with cpu_threads(config.sampler.threads):
        policy = build_policy(
            config,
            dtype=config.sampler.dtype,
            device=device,
            with_decoder=True,
            merged=not config.sampler.exact,
            compiled=compiles(config, device),
            recorded=device.type == "cuda" and config.policy.compile is not False,
        )
    monitors = [build_scorer(monitor) for monitor in config.reward.monitors]
    return make_sampler(config, policy, build_scorer(config.reward.scorer), monitors, name)


def compiles(config: Config, device: torch.device) -> bool:
    """Whether the U-Net of a sampler on this device is compiled."""
    if config.policy.compile == "auto":
        return device.type == "cuda" and config.sampled_rows >= COMPILING_PAYS and lacking_compiler() is None
    return config.policy.compile


def build_sampler_process(config: Config, name: str) -> DiffusionSampler:
    """A sampler for a process of its own, which calls it from several threads: their number of torch threads stays."""
    torch.set_num_threads(config.sampler.threads)
    return build_sampler(config, name)


def make_sampler(
    config: Config, policy: Policy, scorer: Scorer, monitors: Sequence[Scorer], name: str = "local"
) -> DiffusionSampler:
    """The sampler of `config` on a policy and judges that are there already."""
    return DiffusionSampler(
        policy,
        scorer,
        monitors,
        run_seed=config.seed,
        trajectories=config.sampler.trajectories,
        keep=config.sampler.keep,
        shared_noise=config.sampler.shared_noise,
        latent_shape=latent_shape(config, policy),
        storage_dtype=getattr(torch, config.sampler.storage_dtype),
        threads=config.sampler.threads,
        name=name,
    )


def latent_shape(config: Config, policy: Policy) -> tuple[int, int, int]:
    """(C, H, W) of what is denoised."""
    network = policy.unet.config
    return (int(network.in_channels), *latent_height_and_width(config.sampler.latent_size, network.sample_size))


def build_learner(
    config: Config,
    fetch: Callable[[Sequence[Handle]], Sequence[TrajectoryGroup]],
    gang: Gang | None = None,
    capacity: int | None = None,
) -> SGDLearner[Handle]:
    """gang: of the learner's workers; None: it is alone. capacity: of the replay buffer; None: a stage's groups."""
    with cpu_threads(config.learner.threads):
        policy = build_policy(
            config,
            dtype=config.learner.dtype,
            device=resolve_device(config.learner.device, "learner.device"),
            with_decoder=False,
            gradient_checkpointing=config.learner.gradient_checkpointing,
            compiled=config.policy.compile is True,
        )
        if config.policy.init_lora is not None:
            policy.bind(initial_lora(config, {n: a.shape for n, a in policy.weights().tensors.items()}))
    return make_learner(config, policy, fetch, gang, capacity)


def make_learner(
    config: Config,
    policy: Policy,
    fetch: Callable[[Sequence[Handle]], Sequence[TrajectoryGroup]],
    gang: Gang | None = None,
    capacity: int | None = None,
) -> SGDLearner[Handle]:
    """The learner of `config` on a policy that is there already; `learner.micro_batch` is settled."""
    gang, capacity, train = gang or Gang(), capacity or config.stage.groups, config.train
    elements = math.prod(latent_shape(config, policy))
    if config.policy.compile is not True:  # which sees for itself what the backward pass needs
        keep_less(policy.unet)  # gives layers another class, in place
    cached = config.learner.cache_references
    if cached == "auto":  # elsewhere the bits of a log-probability depend on its place in a call
        cached = policy.device.type == "cpu"
    return SGDLearner(
        policy,
        make_batches(config, fetch, policy.device, gang, capacity),
        ReferenceCache(policy, capacity, config.sampler.keep, enabled=cached),
        total_steps=config.stage.count * config.stage.steps,
        c=train.c,
        clip=train.clip,
        ties=train.ties,
        reg_to_pi_init=train.reg_to_pi_init,
        reg_to_pi_old=train.reg_to_pi_old,
        no_reg_warmup_ratio=train.no_reg_warmup_ratio,
        lr=train.lr,
        weight_decay=train.weight_decay,
        betas=train.betas,
        eps=train.eps,
        max_grad_norm=train.max_grad_norm,
        threads=config.learner.threads,
        gang=gang,
        loss_scale=loss_scale(elements, train.batch_tuples, train.c) if policy.dtype == torch.float16 else 1.0,
    )


def make_batches(
    config: Config,
    fetch: Callable[[Sequence[Handle]], Sequence[TrajectoryGroup]],
    device: torch.device,
    gang: Gang,
    capacity: int,
) -> BatchSource[Handle]:
    """The batches of `config`, of which a worker of the gang has its share; `learner.micro_batch` is settled."""
    assert config.learner.micro_batch != "auto"
    steps, train = config.steps, config.train
    return BatchSource(
        ReplayBuffer(capacity),
        fetch,
        run_seed=config.seed,
        batch_groups=train.batch_groups,
        step_weights=step_weights(steps.count, steps.gamma, steps.exclude_last),
        tuple_size=train.tuple_size,
        tuples=train.tuples,
        tuple_choice=train.tuple_choice,
        ties=train.ties,
        step_draws=steps.draws,
        micro_batch=config.learner.micro_batch,
        share=(gang.rank, gang.size),
        device=device,
    )
