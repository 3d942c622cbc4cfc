"""Bytes that a run takes: of a trajectory group, and of the devices of samplers and learner."""

from __future__ import annotations

import math

import torch

from raydense.config import Config
from raydense.core.types import stored_states
from raydense.diffusion.compiler import SMALL
from raydense.families.family import Family
from raydense.pipelines.pipeline_files import PipelineFiles
from raydense.planning.footprint import Footprint, text_encoder_parameters
from raydense.planning.scorer_memory import scorer_bytes
from raydense.sections.roles import RENDER_BATCH

CUDA_CONTEXT = 0.6e9  # bytes a process, with the libraries' workspaces


def group_bytes(config: Config, family: Family) -> int:
    """One trajectory group in the replay buffer, as TrajectoryGroup.nbytes. Args: config: resolved."""
    width = 2 if config.sampler.storage_dtype == "float16" else 4
    kept, steps = config.sampler.keep, config.steps.count
    states = len(stored_states(config.steps.drawn, steps)) * math.prod(family.latent_shape)
    conditioning = sum(map(math.prod, family.conditioning_shapes.values())) * family.conditioning_dtype.itemsize
    return kept * (states * width + 4 * steps + 4) + conditioning


def encoder_bytes(config: Config, files: PipelineFiles) -> int:
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


def sampler_bytes(config: Config, family: Family, rolled: Footprint, decoder: Footprint, encoders: int) -> int:
    """Weights of pipeline and scorers, and the larger of denoising and decoding: a unit, or what is drawn to judge.

    A merged LoRA keeps the weights that it was merged into. A call so small that a GPU records it keeps its memory.
    Args: rolled, decoder: of one latent. encoders: their weights.
    """
    dtype: torch.dtype = getattr(torch, config.sampler.dtype)
    beside = rolled.lora_parameters if dtype.itemsize < 4 else 0  # a copy of the LoRA, in the network's dtype
    kept = beside if config.sampler.exact else rolled.adapted_parameters
    weights = dtype.itemsize * (rolled.parameters + kept) + 4 * rolled.lora_parameters + encoders
    weights += family.decoder_dtype(dtype).itemsize * decoder.parameters
    unit = config.sampler.prompts_at_once * config.sampler.trajectories
    images, recorded = max(unit, RENDER_BATCH), unit if unit <= SMALL else 0
    decoded = min(images, config.sampler.decode_batch or images)
    an_image = family.rows * rolled.peak_bytes
    work = max(images * an_image, decoded * decoder.peak_bytes) + recorded * an_image
    scorers = sum(scorer_bytes(scorer, images) for scorer in config.reward.judges)
    return int(weights + work + scorers + CUDA_CONTEXT)


def learner_bytes(config: Config, trained: Footprint, rows: int, encoders: int) -> int:
    """Weights, the LoRA with gradient, moments, average and copy in the network's dtype, one micro-batch.

    Text encoders are there at the start alone, for the unconditional half.
    Args: rows: of the network, a transition. encoders: their weights, of those that the learner needs.
    """
    share, dtype = config.worker_tuples, getattr(torch, config.learner.dtype)
    tuples = 1 if config.learner.micro_batch == "auto" else min(config.learner.micro_batch or share, share)
    lora = 16 if dtype == torch.float32 else 16 + 2 * dtype.itemsize  # the copy has a gradient, too
    lora += 0 if config.train.ema is None else 4
    weights = dtype.itemsize * trained.parameters + lora * trained.lora_parameters
    return int(weights + max(encoders, tuples * tuple_bytes(config, trained, rows)) + CUDA_CONTEXT)


def tuple_bytes(config: Config, trained: Footprint, rows: int) -> int:
    """Of a micro-batch, one tuple. Args: as of `learner_bytes`."""
    return config.train.tuple_size * config.steps.draws * rows * trained.peak_bytes
