"""Sampler and learner, as a configuration names their parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from actors.sampler import DiffusionSampler
from learner.batch_source import BatchSource
from learner.clips import AutoClip, Clip, FixedClip
from learner.gang import Gang
from learner.losses import balancing_weights, loss_scale, step_weights
from learner.objective import DensePreference, Objective
from learner.references import ReferenceCache
from learner.rival_objectives import DiffusionDPO, PolicyGradient
from learner.sgd_learner import SGDLearner
from raydense.config import Config
from raydense.core.interfaces import Scorer
from raydense.core.replay import ReplayBuffer
from raydense.core.threads import cpu_threads
from raydense.core.types import TrajectoryGroup
from raydense.diffusion.lean import keep_less
from raydense.diffusion.noising import NoiseLevels, make_noise_levels
from raydense.diffusion.policy import Policy
from raydense.pipelines.pipeline_files import SCHEDULER, PipelineFiles
from raydense.wiring.devices import resolve_device
from raydense.wiring.policies import build_policy, build_sampling_policy, compiles, initial_lora, records, resolved
from raydense.wiring.scorers import build_scorer

Handle = TypeVar("Handle")
LOG_RATIO_NOISE = {"bfloat16": 1e-3, "float16": 5e-5}  # root mean square over steps, of SD1.5; see bench/README.md
CLEAR = 3  # times the noise of a log-ratio, below which a clip cuts noise


def build_sampler(config: Config, name: str = "local", files: PipelineFiles | None = None) -> DiffusionSampler:
    """Args: files: the pipeline's, where they have been read; a process of its own reads them itself."""
    device = resolve_device(config.sampler.device, "sampler.device")
    with cpu_threads(config.sampler.threads):
        policy = build_sampling_policy(
            config, device, files, compiled=compiles(config, device, files), recorded=records(config, device)
        )
    monitors = [build_scorer(monitor) for monitor in config.reward.monitors]
    return make_sampler(config, policy, build_scorer(config.reward.scorer), monitors, name)


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
        drawn=resolved(config, policy.family).steps.drawn,
        shared_noise=config.sampler.shared_noise,
        storage_dtype=getattr(torch, config.sampler.storage_dtype),
        threads=config.sampler.threads,
        name=name,
    )


def build_learner(
    config: Config,
    fetch: Callable[[Sequence[Handle]], Sequence[TrajectoryGroup]],
    gang: Gang | None = None,
    capacity: int | None = None,
    files: PipelineFiles | None = None,
) -> SGDLearner[Handle]:
    """The learner of `config`.

    Args:
        gang: of the learner's workers; None: it is alone.
        capacity: of the replay buffer; None: a stage's groups.
        files: as of `build_sampler`.
    """
    with cpu_threads(config.learner.threads):
        policy = build_policy(
            config,
            dtype=config.learner.dtype,
            device=resolve_device(config.learner.device, "learner.device"),
            with_decoder=False,
            with_texts=False,
            gradient_checkpointing=config.learner.gradient_checkpointing,
            compiled=config.policy.compile is True,
            files=files,
        )
        if config.policy.init_lora is not None:
            shapes = {name: array.shape for name, array in policy.weights().tensors.items()}
            policy.bind(initial_lora(config, policy.family.files, shapes))
    return make_learner(config, policy, fetch, gang, capacity)


def make_learner(
    config: Config,
    policy: Policy,
    fetch: Callable[[Sequence[Handle]], Sequence[TrajectoryGroup]],
    gang: Gang | None = None,
    capacity: int | None = None,
) -> SGDLearner[Handle]:
    """The learner of `config` on a policy that is there already; `learner.micro_batch` is settled."""
    config = resolved(config, policy.family)
    gang, capacity, train = gang or Gang(), capacity or config.stage.groups, config.train
    elements = math.prod(policy.family.latent_shape)
    if config.policy.compile is not True:  # which sees for itself what the backward pass needs
        keep_less(policy.network)  # gives layers another class, in place
    levels = None if train.draws_steps else make_noise_levels(policy.family.files[SCHEDULER] or {})
    scale = {"policy_gradient": 1.0, "diffusion_dpo": train.dpo_beta}.get(train.objective, train.c)
    return SGDLearner(
        policy,
        make_batches(config, fetch, policy.device, gang, capacity, levels),
        _objective(config, policy, capacity, levels),
        lr=train.lr,
        weight_decay=train.weight_decay,
        betas=train.betas,
        eps=train.eps,
        max_grad_norm=train.max_grad_norm,
        threads=config.learner.threads,
        gang=gang,
        ema=train.ema,
        loss_scale=loss_scale(elements, train.batch_tuples, scale) if policy.dtype == torch.float16 else 1.0,
    )


def _objective(config: Config, policy: Policy, capacity: int, levels: NoiseLevels | None) -> Objective:
    """Args: config: resolved. capacity: of the replay buffer. levels: of noise, for finished pictures."""
    train = config.train
    if train.objective == "policy_gradient":
        return PolicyGradient(policy, _clip(config), kl=train.kl)
    if levels is not None:
        return DiffusionDPO(policy, levels, beta=train.dpo_beta, ties=train.ties)
    cached = config.learner.cache_references
    if cached == "auto":  # elsewhere the bits of a log-probability depend on its place in a call
        cached = policy.device.type == "cpu"
    return DensePreference(
        policy,
        ReferenceCache(policy, capacity, config.sampler.keep, enabled=cached),
        _clip(config),
        c=train.c,
        ties=train.ties,
        balance=_balance(config, policy),
        to_init=train.reg_to_pi_init,
        to_old=train.reg_to_pi_old,
        warm_up_steps=int(train.no_reg_warmup_ratio * config.stage.count * config.stage.steps),
    )


def _clip(config: Config) -> Clip:
    train = config.train
    if train.clip == "auto":
        floor = CLEAR * LOG_RATIO_NOISE.get(config.learner.dtype, 0.0)
        return AutoClip(config.steps.count, train.clip_share, floor)
    return FixedClip(train.clip)


def _balance(config: Config, policy: Policy) -> Tensor | None:
    """Args: config: resolved."""
    if config.steps.balance == "none":
        return None
    drawn = step_weights(config.steps.drawn, config.steps.gamma)
    return balancing_weights(policy.schedule.sensitivity().cpu(), drawn).to(policy.device)


def make_batches(
    config: Config,
    fetch: Callable[[Sequence[Handle]], Sequence[TrajectoryGroup]],
    device: torch.device,
    gang: Gang,
    capacity: int,
    levels: NoiseLevels | None = None,
) -> BatchSource[Handle]:
    """The batches of `config`, of which a worker of the gang has its share; `learner.micro_batch` is settled.

    Args: levels: of noise that final latents are given; None: the chain's own transitions.
    """
    assert config.learner.micro_batch != "auto"
    steps, train = config.steps, config.train
    return BatchSource(
        ReplayBuffer(capacity),
        fetch,
        run_seed=config.seed,
        batch_groups=train.batch_groups,
        step_weights=step_weights(steps.drawn, steps.gamma) if levels is None else levels.weights,
        tuple_size=train.tuple_size,
        tuples=train.tuples,
        tuple_choice=train.tuple_choice,
        ties="random" if train.objective == "policy_gradient" else train.ties,  # where ties take no part in the choice
        step_draws=steps.draws,
        micro_batch=config.learner.micro_batch,
        share=(gang.rank, gang.size),
        device=device,
        levels=levels,
    )
