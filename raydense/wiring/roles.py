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
from learner.references import ReferenceCache
from learner.sgd_learner import SGDLearner
from raydense.config import Config
from raydense.core.interfaces import Scorer
from raydense.core.replay import ReplayBuffer
from raydense.core.threads import cpu_threads
from raydense.core.types import TrajectoryGroup
from raydense.diffusion.lean import keep_less
from raydense.diffusion.policy import Policy
from raydense.wiring.devices import resolve_device
from raydense.wiring.policies import build_policy, compiles, initial_lora, records, resolved
from raydense.wiring.scorers import build_scorer

Handle = TypeVar("Handle")
LOG_RATIO_NOISE = {"bfloat16": 1e-3, "float16": 5e-5}  # root mean square over steps; see bench/README.md
CLEAR = 3  # times the noise of a log-ratio, below which a clip cuts noise


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
            recorded=records(config, device),
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
) -> SGDLearner[Handle]:
    """gang: of the learner's workers; None: it is alone. capacity: of the replay buffer; None: a stage's groups."""
    with cpu_threads(config.learner.threads):
        policy = build_policy(
            config,
            dtype=config.learner.dtype,
            device=resolve_device(config.learner.device, "learner.device"),
            with_decoder=False,
            with_texts=False,
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
    config = resolved(config, policy.family)
    gang, capacity, train = gang or Gang(), capacity or config.stage.groups, config.train
    elements = math.prod(policy.family.latent_shape)
    if config.policy.compile is not True:  # which sees for itself what the backward pass needs
        keep_less(policy.network)  # gives layers another class, in place
    cached = config.learner.cache_references
    if cached == "auto":  # elsewhere the bits of a log-probability depend on its place in a call
        cached = policy.device.type == "cpu"
    return SGDLearner(
        policy,
        make_batches(config, fetch, policy.device, gang, capacity),
        ReferenceCache(policy, capacity, config.sampler.keep, enabled=cached),
        total_steps=config.stage.count * config.stage.steps,
        c=train.c,
        clip=_clip(config),
        balance=_balance(config, policy),
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
) -> BatchSource[Handle]:
    """The batches of `config`, of which a worker of the gang has its share; `learner.micro_batch` is settled."""
    assert config.learner.micro_batch != "auto"
    steps, train = config.steps, config.train
    return BatchSource(
        ReplayBuffer(capacity),
        fetch,
        run_seed=config.seed,
        batch_groups=train.batch_groups,
        step_weights=step_weights(steps.drawn, steps.gamma),
        tuple_size=train.tuple_size,
        tuples=train.tuples,
        tuple_choice=train.tuple_choice,
        ties=train.ties,
        step_draws=steps.draws,
        micro_batch=config.learner.micro_batch,
        share=(gang.rank, gang.size),
        device=device,
    )
