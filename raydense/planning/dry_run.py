"""`raydense train --dry-run`: what a run will do and need, computed from its configuration without weights."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from raydense.config import Config, ConfigError
from raydense.core.types import stored_states
from raydense.diffusion.compiler import SMALL
from raydense.families.family import Family
from raydense.pipelines.pipeline_files import PipelineFiles
from raydense.pipelines.published import PUBLISHED
from raydense.planning.compute import NetworkRows, planned_rows
from raydense.planning.footprint import Footprint, decoder_footprint, denoiser_footprint, text_encoder_parameters
from raydense.planning.preflight import check_models, needs_hub
from raydense.planning.scorer_memory import scorer_bytes
from raydense.planning.units import PromptSets, held_out_prompts, judged_prompts, read_prompt_sets
from raydense.sections.roles import RENDER_BATCH
from raydense.wiring.chains import judged_by
from raydense.wiring.policies import family_for, lora_config, resolved, sampled_rows

CUDA_CONTEXT = 0.6e9  # bytes a process, with the libraries' workspaces
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
    lora = lora_config(config)
    sampler_dtype, learner_dtype = getattr(torch, config.sampler.dtype), getattr(torch, config.learner.dtype)
    rolled = denoiser_footprint(family, lora, dtype=sampler_dtype, with_gradient=False)
    checkpointed = config.learner.gradient_checkpointing
    trained = denoiser_footprint(family, lora, dtype=learner_dtype, with_gradient=True, checkpointed=checkpointed)
    channels, height, width = family.latent_shape
    decoded_as = family.decoder_dtype(sampler_dtype)
    decoder = decoder_footprint(files["vae"] or {}, latent_size=(height, width), dtype=decoded_as)
    encoders = _encoder_bytes(config, files)
    group = group_bytes(config, channels * height * width, _conditioning_bytes(family))
    rows = family.rows
    lora_bytes = 4 * trained.lora_parameters
    images, judged = count_images(config), count_judged(config, sets)
    image_flops = config.steps.count * rows * rolled.flops + decoder.flops
    judged_flops = judged_by(config).count * rows * rolled.flops + decoder.flops
    sampling = images * image_flops + judged * judged_flops
    learned = rows if config.train.draws_steps else 1  # of the network, a transition or a noised picture
    training = count_transitions(config) * learned * _step_flops(config, rolled, trained)
    segments = config.replay.segments if config.replay.segments is not None else group >= 2**20
    stages_on_disk = config.stage.count if config.replay.keep_segments else config.stage.held
    return Plan(
        images=images,
        judged_images=judged,
        sampled_rows=sampled_rows(config, family),
        network_rows=planned_rows(config, rows, images, count_transitions(config), judged),
        groups=config.stage.count * config.stage.groups,
        gradient_steps=config.stage.count * config.stage.steps,
        network=family.layout.called,
        unet_parameters=trained.parameters,
        lora_parameters=trained.lora_parameters,
        lora_bytes=lora_bytes,
        group_bytes=group,
        replay_bytes=config.stage.held * config.stage.groups * group,
        segment_bytes=int(segments) * stages_on_disk * config.stage.groups * group,
        checkpoint_bytes=(3 if config.train.ema is None else 4) * lora_bytes * config.checkpoint.keep_last,
        sampler_gpu_bytes=_sampler_bytes(
            config,
            rows * rolled.peak_bytes,
            rolled,
            decoder.parameters * decoded_as.itemsize,
            decoder.peak_bytes,
            encoders,
        ),
        learner_gpu_bytes=_learner_bytes(config, trained, learned, encoders if family.guided else 0, learner_dtype),
        tuple_bytes=_tuple_bytes(config, trained, learned),
        image_flops=image_flops,
        sampling_flops=sampling,
        training_flops=training,
        sampling_hours=sampling / (tflops * 1e12 * sampler_devices(config)) / 3600,
        training_hours=training / (tflops * 1e12 * config.learner.num_workers) / 3600,
        tflops=tflops,
        notes=assumed,
    )


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


def group_bytes(config: Config, latent_values: int, conditioning_bytes: int) -> int:
    """One trajectory group in the replay buffer, as TrajectoryGroup.nbytes."""
    width = 2 if config.sampler.storage_dtype == "float16" else 4
    kept, steps = config.sampler.keep, config.steps.count
    states = len(stored_states(config.steps.drawn, steps))
    return kept * (states * latent_values * width + 4 * steps + 4) + conditioning_bytes


def _conditioning_bytes(family: Family) -> int:
    return sum(map(math.prod, family.conditioning_shapes.values())) * family.conditioning_dtype.itemsize


def _encoder_bytes(config: Config, files: PipelineFiles) -> int:
    """Weights of the text encoders that are on a device."""
    total = 0
    for part in files.layout.text_encoders:
        if not files.has(part):
            continue
        is_t5 = files.is_t5(part)
        if not (is_t5 and config.policy.t5 == "cpu"):
            dtype: torch.dtype = getattr(torch, config.policy.t5_dtype) if is_t5 else torch.float32
            total += dtype.itemsize * text_encoder_parameters(files.networks[part], files[part] or {})
    return total


def _step_flops(config: Config, rolled: Footprint, trained: Footprint) -> float:
    return trained.flops + (rolled.flops if config.train.calls_initial else 0.0)


def sampler_devices(config: Config) -> int:
    fleet = config.samplers
    count = fleet.max or fleet.count or 1
    return max(1, math.floor(count * fleet.num_gpus)) if fleet.num_gpus else count


def _sampler_bytes(
    config: Config, an_image: int, rolled: Footprint, decoder: int, a_picture: int, encoders: int
) -> int:
    """Weights of pipeline and scorers, and the larger of denoising and decoding: a unit, or what is drawn to judge.

    A merged LoRA keeps the weights that it was merged into. A call so small that a GPU records it keeps its memory.
    Args: an_image, a_picture: of denoising one, and of decoding it. decoder, encoders: their weights.
    """
    width = getattr(torch, config.sampler.dtype).itemsize
    beside = rolled.lora_parameters if width < 4 else 0  # a copy of the LoRA, in the network's dtype
    kept = beside if config.sampler.exact else rolled.adapted_parameters
    weights = width * (rolled.parameters + kept) + 4 * rolled.lora_parameters + decoder + encoders
    unit = config.sampler.prompts_at_once * config.sampler.trajectories
    images, recorded = max(unit, RENDER_BATCH), unit if unit <= SMALL else 0
    decoded = min(images, config.sampler.decode_batch or images)
    work = max(images * an_image, decoded * a_picture) + recorded * an_image
    scorers = sum(scorer_bytes(scorer, images) for scorer in config.reward.judges)
    return int(weights + work + scorers + CUDA_CONTEXT)


def _learner_bytes(config: Config, trained: Footprint, rows: int, encoders: int, dtype: torch.dtype) -> int:
    """Weights, the LoRA with gradient, moments, average and copy in the network's dtype, one micro-batch.

    Text encoders are there at the start alone, for the unconditional half.
    """
    share = config.worker_tuples
    tuples = 1 if config.learner.micro_batch == "auto" else min(config.learner.micro_batch or share, share)
    lora = 16 if dtype == torch.float32 else 16 + 2 * dtype.itemsize  # the copy has a gradient, too
    lora += 0 if config.train.ema is None else 4
    weights = dtype.itemsize * trained.parameters + lora * trained.lora_parameters
    return int(weights + max(encoders, tuples * _tuple_bytes(config, trained, rows)) + CUDA_CONTEXT)


def _tuple_bytes(config: Config, trained: Footprint, rows: int) -> int:
    return config.train.tuple_size * config.steps.draws * rows * trained.peak_bytes


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
