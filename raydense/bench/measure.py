"""`raydense bench`: what a device's sampler, learner and scorer sustain, on models of known size; without Ray."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch

from raydense.bench.architectures import MODELS
from raydense.bench.clock import device_name
from raydense.bench.timed_roles import Progress, Workload, measure_learner, measure_sampler, measure_scorer
from raydense.config import ConfigError
from raydense.pipelines.pipeline_files import read_pipeline
from raydense.planning.micro_batch import local_gpu, settled
from raydense.planning.preflight import check_models
from raydense.planning.units import read_prompt_sets, stage_units
from raydense.wiring.devices import resolve_device

PACKAGES = ("raydense", "torch", "diffusers", "transformers")


def plan_workloads(models: Sequence[str], overrides: Sequence[str]) -> list[Workload]:
    """Finds all that can be wrong before any work. Raises: ConfigError."""
    for name in models:
        if name not in MODELS:
            raise ConfigError(f"--model={name} is no model of the benchmark; choose from {', '.join(MODELS)}")
    return [_plan(name, overrides) for name in dict.fromkeys(models)]


def _plan(name: str, overrides: Sequence[str]) -> Workload:
    model, whole = MODELS[name], MODELS[name].config(*overrides)
    devices = [_device("sampler", whole.sampler.device), _device("learner", whole.learner.device)]
    given = {override.partition("=")[0].strip() for override in overrides}
    on_cpu = any(device.type == "cpu" for device in devices)
    cut = tuple(setting for setting in model.cut if on_cpu and setting.partition("=")[0] not in given)
    config = model.config(*cut, *overrides)
    pipeline = check_models(config) if model.unet is None else read_pipeline(config.policy.model, None, fetch=False)
    config = settled(config, pipeline, local_gpu)
    units = tuple(stage_units(config, read_prompt_sets(config).train, 0, 0))
    return Workload(name, config, units, whole.steps.count, cut)


def _device(role: str, name: str) -> torch.device:
    if name == "mps":
        raise ConfigError(f"{role}.device={name} is not measured; use cpu or cuda")
    return resolve_device(name, f"{role}.device")


def machine(workloads: Sequence[Workload]) -> dict[str, Any]:
    """What the figures are measured on and with."""
    return {
        "device": device_name(resolve_device(workloads[0].config.sampler.device, "sampler.device")),
        "cpus": os.cpu_count(),
        "versions": {
            **{name: version(name) for name in PACKAGES},
            "python": platform.python_version(),
            "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        },
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def measure(workload: Workload, rounds: int, progress: Progress) -> dict[str, Any]:
    """Rates of each role; one is gone before the next is built."""
    sampler, groups = measure_sampler(workload, rounds, progress)
    learner = measure_learner(workload, groups, rounds, progress)
    scorer = measure_scorer(workload, sampler["image_size"], rounds, progress)
    return {"cut": list(workload.cut), "sampler": sampler, "learner": learner, "scorer": scorer}
