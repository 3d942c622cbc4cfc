"""`raydense train --dry-run`: what a run will do and need, computed from its configuration without weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from raydense.build import lora_config
from raydense.config import Config, ConfigError
from raydense.diffusion.compiler import SMALL
from raydense.diffusion.stable_diffusion import latent_height_and_width, token_count
from raydense.pipelines.pipeline_files import PipelineFiles
from raydense.planning.footprint import Footprint, decoder_footprint, text_encoder_parameters, unet_footprint
from raydense.planning.preflight import check_models, needs_hub
from raydense.planning.units import PromptSets, held_out_prompts, judged_prompts, read_prompt_sets
from raydense.sections.rewards import SingleScorerConfig
from raydense.sections.roles import RENDER_BATCH

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SD15_FILES: Mapping[str, Mapping[str, Any]] = {  # what differs from the classes' defaults, for planning offline
    "unet": {"sample_size": 64, "cross_attention_dim": 768},
    "vae": {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
    },
    "text_encoder": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
    },
}
SCORER_PARAMETERS = {  # ViT-H/14; ViT-L/14 with its head; ViT-L/16, BERT with cross-attention and a head
    "hpsv2": 986_109_441,
    "aesthetic": 428_500_000,
    "imagereward": 446_206_689,
}
CUDA_CONTEXT = 0.6e9  # bytes a process, with the libraries' workspaces
STORE_SHARE = 0.3  # of a node's memory, Ray's default object store


@dataclass(frozen=True)
class Plan:
    """Counts, bytes, FLOPs and hours of a whole run."""

    images: int  # rolled out for training
    judged_images: int
    groups: int
    gradient_steps: int
    unet_parameters: int
    lora_parameters: int
    lora_bytes: int  # float32
    group_bytes: int
    replay_bytes: int  # of the stages held at once: the object store that the run needs
    segment_bytes: int  # on disk at once
    checkpoint_bytes: int  # LoRA, Adam's moments; of all that are kept
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
    assumed: list[str] = []
    unet, vae, text = (_part(pipeline, name, assumed) for name in ("unet", "vae", "text_encoder"))
    latent_size = latent_height_and_width(config.sampler.latent_size, unet.get("sample_size"))
    tokens = token_count(text, pipeline.tokenizer)
    lora = lora_config(config)
    network: Any = {"latent_size": latent_size, "tokens": tokens}
    sampler_dtype, learner_dtype = getattr(torch, config.sampler.dtype), getattr(torch, config.learner.dtype)
    rolled = unet_footprint(unet, lora, dtype=sampler_dtype, with_gradient=False, **network)
    trained = unet_footprint(unet, lora, dtype=learner_dtype, with_gradient=True, **network)
    decoder = decoder_footprint(vae, latent_size=latent_size, dtype=sampler_dtype)
    encoder = text_encoder_parameters(text)
    latent_values = int(unet.get("in_channels", 4)) * math.prod(latent_size)
    group = group_bytes(config, latent_values, tokens * int(text.get("hidden_size", 512)))
    lora_bytes = 4 * trained.lora_parameters
    images, judged = count_images(config), count_judged(config, sets)
    image_flops = config.steps.count * config.sampler.rows_a_latent * rolled.flops + decoder.flops
    sampling = (images + judged) * image_flops
    training = count_transitions(config) * config.sampler.rows_a_latent * _step_flops(config, rolled, trained)
    segments = config.replay.segments if config.replay.segments is not None else group >= 2**20
    stages_on_disk = config.stage.count if config.replay.keep_segments else config.stage.held
    return Plan(
        images=images,
        judged_images=judged,
        groups=config.stage.count * config.stage.groups,
        gradient_steps=config.stage.count * config.stage.steps,
        unet_parameters=trained.parameters,
        lora_parameters=trained.lora_parameters,
        lora_bytes=lora_bytes,
        group_bytes=group,
        replay_bytes=config.stage.held * config.stage.groups * group,
        segment_bytes=int(segments) * stages_on_disk * config.stage.groups * group,
        checkpoint_bytes=3 * lora_bytes * config.checkpoint.keep_last,
        sampler_gpu_bytes=_sampler_bytes(config, rolled, decoder, encoder, sampler_dtype),
        learner_gpu_bytes=_learner_bytes(config, trained, encoder, learner_dtype),
        tuple_bytes=_tuple_bytes(config, trained),
        image_flops=image_flops,
        sampling_flops=sampling,
        training_flops=training,
        sampling_hours=sampling / (tflops * 1e12 * sampler_devices(config)) / 3600,
        training_hours=training / (tflops * 1e12 * config.learner.num_workers) / 3600,
        tflops=tflops,
        notes=tuple(dict.fromkeys(assumed)),
    )


def count_images(config: Config) -> int:
    """Images rolled out: stages x groups x R."""
    return config.stage.count * config.stage.groups * config.sampler.trajectories


def count_judged(config: Config, sets: PromptSets | None) -> int:
    """Images drawn for judging (base and tuned, and held-out prompts in between) and for the grids."""
    judge, total_steps = config.evaluate, config.stage.count * config.stage.steps
    if sets is None:
        prompts, held_out = judge.prompts * (2 if config.prompts.unseen else 1), judge.prompts
    else:
        prompts = sum(map(len, judged_prompts(config, sets).values()))
        held_out = sum(map(len, held_out_prompts(config, sets).values()))
    between = total_steps // judge.every_steps if judge.every_steps else 0
    grids = (config.stage.count + 1) * judge.grid_prompts * judge.grid_images
    return (2 * prompts + between * held_out) * judge.images_per_prompt + grids


def count_transitions(config: Config) -> int:
    """Transitions with a gradient: steps x groups x tuples x n x N_step."""
    train = config.train
    per_step = train.batch_tuples * train.tuple_size * config.steps.draws
    return config.stage.count * config.stage.steps * per_step


def group_bytes(config: Config, latent_values: int, embedding_values: int) -> int:
    """One trajectory group in the replay buffer, as TrajectoryGroup.nbytes."""
    width = 2 if config.sampler.storage_dtype == "float16" else 4
    kept, steps = config.sampler.keep, config.steps.count
    return kept * ((steps + 1) * latent_values * width + 4 * steps + 4) + 4 * embedding_values


def _step_flops(config: Config, rolled: Footprint, trained: Footprint) -> float:
    return trained.flops + (rolled.flops if config.train.reg_to_pi_init else 0.0)


def sampler_devices(config: Config) -> int:
    fleet = config.samplers
    count = fleet.max or fleet.count or 1
    return max(1, math.floor(count * fleet.num_gpus)) if fleet.num_gpus else count


def _sampler_bytes(config: Config, rolled: Footprint, decoder: Footprint, encoder: int, dtype: torch.dtype) -> int:
    """Weights of pipeline and scorers, and the larger of denoising and decoding: a unit, or what is drawn to judge.

    A call so small that a GPU records it keeps its memory.
    """
    weights = (rolled.parameters + decoder.parameters) * dtype.itemsize + 4 * encoder
    unit = config.sampler.prompts_at_once * config.sampler.trajectories
    images, kept = max(unit, RENDER_BATCH), unit if unit <= SMALL else 0
    decoded = min(images, config.sampler.decode_batch or images)
    an_image = config.sampler.rows_a_latent * rolled.peak_bytes
    work = max(images * an_image, decoded * decoder.peak_bytes) + kept * an_image
    scorers = sum(map(_scorer_bytes, config.reward.judges))
    return int(weights + work + scorers + CUDA_CONTEXT)


def _scorer_bytes(scorer: SingleScorerConfig) -> int:
    return 4 * SCORER_PARAMETERS.get(scorer.kind, 0)


def _learner_bytes(config: Config, trained: Footprint, encoder: int, dtype: torch.dtype) -> int:
    """Weights, the LoRA with gradient and moments and its copy in the network's dtype, one micro-batch."""
    share = config.worker_tuples
    tuples = 1 if config.learner.micro_batch == "auto" else min(config.learner.micro_batch or share, share)
    lora = 16 if dtype == torch.float32 else 16 + 2 * dtype.itemsize  # the copy has a gradient, too
    weights = dtype.itemsize * trained.parameters + 4 * encoder + lora * trained.lora_parameters
    return int(weights + tuples * _tuple_bytes(config, trained) + CUDA_CONTEXT)


def _tuple_bytes(config: Config, trained: Footprint) -> int:
    return config.train.tuple_size * config.steps.draws * config.sampler.rows_a_latent * trained.peak_bytes


def _part(pipeline: PipelineFiles, name: str, assumed: list[str]) -> Mapping[str, Any]:
    """A network's configuration: its own; else as published, for the one known model; else an error."""
    found: Mapping[str, Any] | None = getattr(pipeline, name)
    if found is not None:
        return found
    if pipeline.model == SD15:
        assumed.append(f"{SD15} is not on this machine: planned with its published architecture")
        return SD15_FILES[name]
    raise ConfigError(f"policy.model={pipeline.model} is not on this machine; give a directory or download it")


def size(count: float) -> str:
    """Bytes as people read them, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
