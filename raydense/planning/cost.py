"""What a planned run takes: hours, GPU-hours, money, and how many samplers keep the learner busy."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raydense.config import Config, ConfigError
from raydense.pipelines.published import SD15
from raydense.planning.dry_run import Plan, count_transitions, sampler_devices

BENCH_MODELS = {
    SD15: "sd15",
    "pkg://raydense.tiny/weights/pipeline": "tiny",
}  # policy.model → its name in the benchmark


@dataclass(frozen=True)
class Rates:
    """Of one sampler's device and of the learner's: what they sustain, and who says so."""

    images_per_s: float
    transitions_per_s: float
    source: str

    @classmethod
    def assumed(cls, config: Config, plan: Plan) -> Rates:
        """From the plan's work and its TFLOP/s a device."""
        flops = plan.tflops * 1e12
        images, transitions = flops / plan.image_flops, flops * count_transitions(config) / plan.training_flops
        return cls(images, transitions, f"{plan.tflops:g} TFLOP/s a device, assumed")

    @classmethod
    def measured(cls, location: str, config: Config) -> Rates:
        """From FILE or FILE#MODEL. Raises: ConfigError.

        FILE: as `raydense bench --json` writes it, of which
        {"device": …, "models": {MODEL: {"sampler": {"images_per_s": …}, "learner": {"transitions_per_s": …}}}} is read,
        and, where it is there, the sampler's "steps": it must be the plan's.
        """
        name, mark, wanted = location.rpartition("#")
        if not mark or Path(location).is_file():
            name, wanted = location, ""
        content = _read(name)
        models = content.get("models", {})
        model = wanted or (next(iter(models)) if len(models) == 1 else BENCH_MODELS.get(config.policy.model, ""))
        if model not in models:
            raise ConfigError(
                f"--rates={location} has no {model or 'one model that is ' + config.policy.model}; choose one of "
                f"{', '.join(models) or 'none'} as --rates {shlex.quote(f'{name}#MODEL')}"
            )
        images = _rate(location, models[model], "sampler", "images_per_s")
        steps = models[model]["sampler"].get("steps", config.steps.count)
        if steps != config.steps.count:
            raise ConfigError(
                f"--rates={location}: {model} was measured with {steps} denoising steps and the plan has "
                f"{config.steps.count}; measure with raydense bench --set steps.count={config.steps.count}"
            )
        transitions = _rate(location, models[model], "learner", "transitions_per_s")
        return cls(images, transitions, f"measured: {model} on {content.get('device', 'an unnamed device')}")


@dataclass(frozen=True)
class Cost:
    """Of a whole run, samplers and learner on devices of their own; `hours` by its schedule, in turns or overlapped.

    money: of all devices for all hours; None without a price. balanced_samplers: that many devices sample for as long
    as the learner learns.
    """

    sampling_hours: float
    training_hours: float
    hours: float
    devices: int
    gpu_hours: float
    money: float | None
    balanced_samplers: float
    rates: Rates

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def estimate_cost(config: Config, plan: Plan, rates: Rates, price_per_gpu_hour: float | None = None) -> Cost:
    """Hours at these rates: images rolled out and judged, transitions with a gradient; nothing else is counted.

    Args: rates: images_per_s: of those that are rolled out.
    """
    one_sampler = plan.sampled_images / rates.images_per_s / 3600
    workers = config.learner.num_workers
    training = count_transitions(config) / (workers * rates.transitions_per_s) / 3600
    sampling = one_sampler / sampler_devices(config)
    learner_gpus = config.learner.num_gpus
    shared = learner_gpus is not None and 0 < learner_gpus < 1
    devices = sampler_devices(config) + (0 if shared else workers * max(1, math.ceil(learner_gpus or 0)))
    hours = max(sampling, training) if config.stage.schedule == "overlapped" else sampling + training
    gpu_hours = devices * hours
    return Cost(
        sampling_hours=sampling,
        training_hours=training,
        hours=hours,
        devices=devices,
        gpu_hours=gpu_hours,
        money=None if price_per_gpu_hour is None else gpu_hours * price_per_gpu_hour,
        balanced_samplers=one_sampler / training,
        rates=rates,
    )


def _read(name: str) -> Mapping[str, Any]:
    try:
        content = json.loads(Path(name).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--rates={name} cannot be read ({error}); measure them with raydense bench --json FILE"
        ) from None
    if not isinstance(content, dict) or not isinstance(content.get("models"), dict):
        raise ConfigError(f"--rates={name} has no models; measure them with raydense bench --json FILE")
    return content


def _rate(location: str, model: Any, role: str, unit: str) -> float:
    try:
        rate = float(model[role][unit])
    except (KeyError, TypeError, ValueError):
        rate = math.nan
    if not (math.isfinite(rate) and rate > 0):
        raise ConfigError(
            f"--rates={location}: {role}.{unit} is missing or no positive number; measure it with raydense bench"
        )
    return rate
