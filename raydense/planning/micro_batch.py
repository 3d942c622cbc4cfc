"""What `auto` is in numbers: the tuples of the learner's calls that its memory takes, the prompts of a work unit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from raydense.config import Config, ConfigError
from raydense.pipelines.pipeline_files import PipelineFiles
from raydense.planning.dry_run import plan_run, size
from raydense.wiring.devices import resolve_device

CPU_BYTES = 4e9  # without `learner.memory_gb`, or what one tuple needs; the same everywhere, as is a run's gradient
GPU_SHARE = 0.8  # of what is free: the plan counts no fragmentation


@dataclass(frozen=True)
class FreeGpu:
    """What the learner's GPU has free before it starts, and how many samplers are to share it."""

    free_bytes: int
    samplers: int


def settled(config: Config, pipeline: PipelineFiles, learner_gpu: Callable[[Config], FreeGpu | None]) -> Config:
    """The configuration with numbers in the places of `auto`, so that every process and a resume have the same.

    `sampler.unit_prompts`: as many as fill a GPU, by a count of images that judging draws at once anyway, so that the
    planned memory of a sampler holds them. `learner.micro_batch`: the parts of a batch are as few as fit, and as equal
    as may be.
    Args: learner_gpu: looks at it; None where it has none.
    Raises: ConfigError if not even one tuple fits.
    """
    if config.sampler.unit_prompts == "auto":
        unit = {"unit_prompts": config.sampler.prompts_at_once}
        config = config.model_copy(update={"sampler": config.sampler.model_copy(update=unit)})
    if config.learner.micro_batch != "auto":
        return config
    plan, gpu = plan_run(config, pipeline, None, tflops=1.0), learner_gpu(config)
    if gpu is not None:
        budget, what = GPU_SHARE * gpu.free_bytes - gpu.samplers * plan.sampler_gpu_bytes, "its GPU leaves"
    else:
        budget = config.learner.memory_gb * 1e9 or max(CPU_BYTES, plan.learner_gpu_bytes)
        what = "learner.memory_gb allows"
    most = math.floor(1 + (budget - plan.learner_gpu_bytes) / plan.tuple_bytes)
    if most < 1:
        learner, draws = config.learner, config.steps.draws
        ways = {
            "set learner.gradient_checkpointing=true": not learner.gradient_checkpointing,
            "set a 16-bit learner.dtype": learner.dtype == "float32",
            "lower steps.draws": draws > 1,
            "lower train.tuple_size": config.train.tuple_size > 2,
        }
        advice = ", ".join(way for way, is_left in ways.items() if is_left)
        raise ConfigError(
            f"learner.micro_batch=auto: a single tuple needs about {size(plan.learner_gpu_bytes)}, but {what} "
            f"{size(budget)}; {advice + ', or ' if advice else ''}give the learner more"
        )
    chosen = math.ceil(config.worker_tuples / math.ceil(config.worker_tuples / most))
    return config.model_copy(update={"learner": config.learner.model_copy(update={"micro_batch": chosen})})


def local_gpu(config: Config) -> FreeGpu | None:
    """The learner's in this process."""
    device = resolve_device(config.learner.device, "learner.device")
    if device.type != "cuda":
        return None
    sampler = resolve_device(config.sampler.device, "sampler.device")
    return FreeGpu(torch.cuda.mem_get_info(device)[0], samplers=int(device == sampler))
