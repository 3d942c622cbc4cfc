"""`raydense train --dry-run`: what a run will do and need, computed from its configuration without weights."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from raydense.config import Config, ConfigError
from raydense.families.family import Family
from raydense.pipelines.pipeline_files import PipelineFiles
from raydense.pipelines.published import PUBLISHED
from raydense.planning.compute import NetworkRows, planned_rows
from raydense.planning.effects import check_kept, idle_in_training
from raydense.planning.footprint import Footprint, decoder_footprint, denoiser_footprint
from raydense.planning.memory import encoder_bytes, group_bytes, learner_bytes, sampler_bytes, tuple_bytes
from raydense.planning.preflight import check_models, needs_hub
from raydense.planning.units import PromptSets, held_out_prompts, judged_prompts, read_prompt_sets
from raydense.records.segments import is_written
from raydense.wiring.chains import judged_by
from raydense.wiring.policies import family_for, lora_config, resolved, sampled_rows

STORE_SHARE = 0.3  # of a node's memory, Ray's default object store


@dataclass(frozen=True)
class Plan:
    """Counts, bytes, FLOPs and hours of a whole run."""

    images: int  # rolled out for training
    judged_images: int
    sampled_rows: int  # of the network, a sampler's
    network_rows: NetworkRows  # of the whole run
    groups: int
    gradient_steps: int
    network: str  # that is trained, as people call it
    unet_parameters: int  # of it
    lora_parameters: int
    lora_bytes: int  # float32
    group_bytes: int
    replay_bytes: int  # of the stages held at once: the object store that the run needs
    segment_bytes: int  # on disk at once
    checkpoint_bytes: int  # LoRA and its average, Adam's moments; of all that are kept
    sampler_gpu_bytes: int
    learner_gpu_bytes: int  # `learner.micro_batch: auto` counts as 1
    tuple_bytes: int  # of these, a tuple of the micro-batch
    image_flops: float
    sampling_flops: float
    training_flops: float
    sampling_hours: float
    training_hours: float
    tflops: float  # the assumed rate of one device
    notes: tuple[str, ...]  # what could not be looked up

    @property
    def sampled_images(self) -> float:
        """All that are drawn, counted as those that are rolled out: to judge, they may take other numbers of steps."""
        return self.sampling_flops / self.image_flops

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_and_plan(config: Config, tflops: float) -> Plan:
    """Validates all that can be without weights, and computes the plan. Raises: ConfigError.

    Prompt sets that only the hub has are a note of the plan and no error.
    """
    notes, sets = [], None
    if from_hub := [p for p in (config.prompts.train, config.prompts.unseen) if p and needs_hub(p)]:
        notes.append(f"prompts that come from the hub were not read: {', '.join(from_hub)}")
    else:
        sets = read_prompt_sets(config)
    pipeline = check_models(config, fetch=False)
    plan = plan_run(config, pipeline, sets, tflops)
    check_kept(config, plan.group_bytes)
    notes += idle_in_training(config)
    return replace(plan, notes=(*pipeline.notes, *(sets.notes if sets else ()), *notes, *plan.notes))


def plan_run(config: Config, pipeline: PipelineFiles, sets: PromptSets | None, tflops: float) -> Plan:
    """Computes the plan.

    Args:
        sets: None where prompts are not at hand; judging then counts `evaluate.prompts` of each set.
        tflops: that one sampler's or the learner's device sustains, in 10¹² operations a second.
    Raises: ConfigError if the model's configuration is neither local nor known nor on the hub.
    """
    files, assumed = _with_published(pipeline)
    family = family_for(config, files)
    config = resolved(config, family)
    networks, encoders = _networks(config, family), encoder_bytes(config, files)
    work, trained = _work(config, family, sets, networks), networks.trained
    group, lora_bytes = group_bytes(config, family), 4 * trained.lora_parameters
    return Plan(
        images=work.images,
        judged_images=work.judged,
        sampled_rows=sampled_rows(config, family),
        network_rows=planned_rows(config, family.rows, work.images, count_transitions(config), work.judged),
        groups=config.stage.count * config.stage.groups,
        gradient_steps=config.stage.count * config.stage.steps,
        network=family.layout.called,
        unet_parameters=trained.parameters,
        lora_parameters=trained.lora_parameters,
        lora_bytes=lora_bytes,
        group_bytes=group,
        replay_bytes=config.stage.held * config.stage.groups * group,
        segment_bytes=_stages_on_disk(config, group) * config.stage.groups * group,
        checkpoint_bytes=(3 if config.train.ema is None else 4) * lora_bytes * config.checkpoint.keep_last,
        sampler_gpu_bytes=sampler_bytes(config, family, networks.rolled, networks.decoder, encoders),
        learner_gpu_bytes=learner_bytes(config, trained, work.learned, encoders if family.guided else 0),
        tuple_bytes=tuple_bytes(config, trained, work.learned),
        image_flops=work.an_image,
        sampling_flops=work.sampling,
        training_flops=work.training,
        sampling_hours=work.sampling / (tflops * 1e12 * sampler_devices(config)) / 3600,
        training_hours=work.training / (tflops * 1e12 * config.learner.num_workers) / 3600,
        tflops=tflops,
        notes=assumed,
    )


@dataclass(frozen=True)
class _Networks:
    """rolled, trained: the denoiser as samplers and as the learner call it."""

    rolled: Footprint
    trained: Footprint
    decoder: Footprint


def _networks(config: Config, family: Family) -> _Networks:
    sampled_as, lora = getattr(torch, config.sampler.dtype), lora_config(config)
    return _Networks(
        denoiser_footprint(family, lora, dtype=sampled_as, with_gradient=False),
        denoiser_footprint(
            family,
            lora,
            dtype=getattr(torch, config.learner.dtype),
            with_gradient=True,
            checkpointed=config.learner.gradient_checkpointing,
        ),
        decoder_footprint(
            family.files["vae"] or {}, latent_size=family.latent_shape[1:], dtype=family.decoder_dtype(sampled_as)
        ),
    )


@dataclass(frozen=True)
class _Work:
    """images, judged: how many. learned: rows of the network, a transition or a noised picture. The rest: FLOPs."""

    images: int
    judged: int
    learned: int
    an_image: float
    sampling: float
    training: float


def _work(config: Config, family: Family, sets: PromptSets | None, networks: _Networks) -> _Work:
    images, judged = count_images(config), count_judged(config, sets)
    learned = family.rows if config.train.draws_steps else 1
    a_step, decoding = family.rows * networks.rolled.flops, networks.decoder.flops
    an_image = config.steps.count * a_step + decoding
    sampling = images * an_image + judged * (judged_by(config).count * a_step + decoding)
    initial = networks.rolled.flops if config.train.calls_initial else 0.0
    training = count_transitions(config) * learned * (networks.trained.flops + initial)
    return _Work(images, judged, learned, an_image, sampling, training)


def _stages_on_disk(config: Config, group: int) -> int:
    """Whose segments are there at once. Args: group: its bytes."""
    replay = config.replay
    return int(is_written(group, replay.segments)) * (config.stage.count if replay.keep_segments else config.stage.held)


def count_images(config: Config) -> int:
    """Images rolled out: stages x groups x R."""
    return config.stage.count * config.stage.groups * config.sampler.trajectories


def count_judged(config: Config, sets: PromptSets | None) -> int:
    """Images drawn for judging (base, tuned and its average, and held-out prompts in between) and for the grids."""
    judge, total_steps = config.evaluate, config.stage.count * config.stage.steps
    if sets is None:
        prompts, held_out = judge.prompts * (2 if config.prompts.unseen else 1), judge.prompts
    else:
        prompts = sum(map(len, judged_prompts(config, sets).values()))
        held_out = sum(map(len, held_out_prompts(config, sets).values()))
    between = total_steps // judge.every_steps if judge.every_steps else 0
    grids = (config.stage.count + 1) * judge.grid_prompts * judge.grid_images
    models = 2 if config.train.ema is None else 3
    return (models * prompts + between * held_out) * judge.images_per_prompt + grids


def count_transitions(config: Config) -> int:
    """Transitions, or noised pictures, with a gradient: steps x groups x tuples x n x N_step."""
    train = config.train
    per_step = train.batch_tuples * train.tuple_size * config.steps.draws
    return config.stage.count * config.stage.steps * per_step


def sampler_devices(config: Config) -> int:
    fleet = config.samplers
    count = fleet.max or fleet.count or 1
    return max(1, math.floor(count * fleet.num_gpus)) if fleet.num_gpus else count


def _with_published(pipeline: PipelineFiles) -> tuple[PipelineFiles, tuple[str, ...]]:
    """The files; where a network's is not on this machine, as published, with a note. Raises: ConfigError."""
    missing = [part for part in pipeline.layout.networks if pipeline.has(part) and pipeline[part] is None]
    if not missing:
        return pipeline, ()
    if pipeline.model not in PUBLISHED:
        raise ConfigError(f"policy.model={pipeline.model} is not on this machine; give a directory or download it")
    own = {part: file for part, file in pipeline.parts.items() if file is not None}
    parts = {**pipeline.parts, **PUBLISHED[pipeline.model][1], **own}
    kept = {part: file for part, file in parts.items() if pipeline.has(part)}
    return replace(pipeline, parts=kept), (
        f"{pipeline.model} is not on this machine: planned with its published architecture",
    )


def size(count: float) -> str:
    """Bytes as people read them, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
