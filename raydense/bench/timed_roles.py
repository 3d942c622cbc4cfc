"""The roles of a run as `raydense bench` measures them: built by the same wiring, each alone, after a warm-up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from actors.sampler import DiffusionSampler
from raydense.bench.architectures import MODELS, bench_policy, bench_scorer
from raydense.bench.clock import (
    PeakMemory,
    Timeline,
    UNetWatch,
    device_name,
    matmul_rate,
    median_phases,
    optimizer_marks,
    spread,
)
from raydense.config import Config
from raydense.core.interfaces import Scorer
from raydense.core.threads import cpu_threads
from raydense.core.types import TrajectoryGroup, WorkUnit
from raydense.diffusion.policy import Policy
from raydense.planning.footprint import decoder_footprint
from raydense.rewards.mixture import MixtureScorer
from raydense.wiring.devices import resolve_device
from raydense.wiring.roles import make_learner, make_sampler
from raydense.wiring.scorers import build_scorer

Progress = Callable[[str, int, int], None]  # what, rounds done, rounds in all
Phases = Mapping[str, float]  # seconds of one round


@dataclass(frozen=True)
class Workload:
    """One model to measure.

    steps: of the chain that rates are for; the config's own may be fewer, on a CPU.
    cut: settings made smaller than the preset's.
    """

    model: str
    config: Config
    units: tuple[WorkUnit, ...]
    steps: int
    cut: tuple[str, ...]


def measure_sampler(
    workload: Workload, rounds: int, progress: Progress
) -> tuple[dict[str, Any], list[TrajectoryGroup]]:
    """Whole work units, one after another; and the groups of the last one.

    A chain that was cut counts as a whole one: its denoising takes as much longer as it has more steps.
    """
    config = workload.config
    device, dtype = resolve_device(config.sampler.device, "sampler.device"), getattr(torch, config.sampler.dtype)
    line, groups = Timeline(device), list[TrajectoryGroup]()
    with PeakMemory(device) as memory, cpu_threads(config.sampler.threads):
        merged = not config.sampler.exact
        policy = bench_policy(workload.model, config, dtype=dtype, device=device, with_decoder=True, merged=merged)
        scorer = bench_scorer(workload.model, config, device)
        sampler, weights = _watched_sampler(workload, policy, scorer, line), policy.weights()
        watch = UNetWatch(policy, line, ("denoise", "denoise"))  # replaces policy.predict

        def unit(index: int) -> None:
            groups[:] = sampler.sample(workload.units[index % len(workload.units)], weights)[1]

        phases = _rounds(f"{workload.model}: sampler", line, "other", unit, rounds, progress, watch)
    rate = matmul_rate(device, dtype, config.sampler.threads)
    images, longer = len(groups) * config.sampler.trajectories, workload.steps / config.steps.count
    seconds = [sum(p.values()) + (longer - 1) * p["denoise"] for p in phases]
    unet_flops, vae = watch.flops(config, dtype) / rounds, policy.vae.config  # type: ignore[union-attr]
    height, width = policy.family.latent_shape[1:]
    decoder = decoder_footprint(vae, latent_size=(height, width), dtype=dtype)
    return {
        **_rates("images_per_s", images, seconds),
        "images": images,
        "image_size": [edge * 2 ** (len(vae.block_out_channels) - 1) for edge in (height, width)],
        "steps": workload.steps,
        "steps_run": config.steps.count,
        "scorer": scorer.name,
        "unet_rows": watch.rows[False] / rounds,
        "rows_a_latent": policy.family.rows,
        "denoise_share": unet_flops * rounds / sum(p["denoise"] for p in phases) / rate,
        **_work(unet_flops + images * decoder.flops, phases, rate),
        **_setting(config.sampler.dtype, config.sampler.threads, device, memory),
    }, groups


def _watched_sampler(workload: Workload, policy: Policy, scorer: Scorer, line: Timeline) -> DiffusionSampler:
    """Monitors only where they are those of the preset."""
    monitors = [build_scorer(m) for m in workload.config.reward.monitors] if MODELS[workload.model].clip is None else []
    line.wrap(policy, "decode", "decode", after="other")
    for judge in (*(scorer.components if isinstance(scorer, MixtureScorer) else (scorer,)), *monitors):
        line.wrap(judge, "score", "score", after="other")
    return make_sampler(workload.config, policy, scorer, monitors)


def measure_learner(
    workload: Workload, groups: Sequence[TrajectoryGroup], rounds: int, progress: Progress
) -> dict[str, Any]:
    """Gradient steps over the draws of a whole stage; its groups repeat those given.

    They are its first: later ones find more of the reference log-probs known, and are faster.
    """
    config, train = workload.config, workload.config.train
    device, dtype = resolve_device(config.learner.device, "learner.device"), getattr(torch, config.learner.dtype)
    line = Timeline(device)

    def fetch(indices: Sequence[int]) -> list[TrajectoryGroup]:
        return [replace(groups[i % len(groups)], index=i, stage=0) for i in indices]

    with PeakMemory(device) as memory, cpu_threads(config.learner.threads), optimizer_marks(line, "optimizer", "other"):
        policy = bench_policy(workload.model, config, dtype=dtype, device=device, with_decoder=False)
        watch = UNetWatch(policy, line, ("reference", "forward"), after="backward")  # replaces policy.predict
        learner: Any = make_learner(config, policy, fetch)
        learner.begin_stage(0, list(range(config.stage.groups)))

        def step(_: int) -> None:
            learner.train(1)

        phases = _rounds(f"{workload.model}: learner", line, "batch", step, rounds, progress, watch)
    rate = matmul_rate(device, dtype, config.learner.threads)
    transitions = train.batch_tuples * train.tuple_size * config.steps.draws
    return {
        **_rates("transitions_per_s", transitions, [sum(p.values()) for p in phases]),
        "transitions": transitions,
        "micro_batch": config.learner.micro_batch,
        "unet_rows": watch.rows[True] / rounds,
        "reference_rows": watch.rows[False] / rounds,
        "rows_a_latent": policy.family.rows,
        **_work(watch.flops(config, dtype) / rounds, phases, rate),
        **_setting(config.learner.dtype, config.learner.threads, device, memory),
    }


def measure_scorer(workload: Workload, image_size: Sequence[int], rounds: int, progress: Progress) -> dict[str, Any]:
    """The training reward alone, on a work unit's number of random images; its prompts are known after the warm-up."""
    config, draws = workload.config, np.random.default_rng(0)
    device = resolve_device(config.sampler.device, "sampler.device")
    prompts = [prompt for prompt in workload.units[0].prompts for _ in range(config.sampler.trajectories)]
    images = draws.integers(0, 256, (len(prompts), *image_size, 3), dtype=np.uint8)
    line = Timeline(device)
    with PeakMemory(device) as memory, cpu_threads(config.sampler.threads):
        scorer = bench_scorer(workload.model, config, device)

        def score(_: int) -> None:
            scorer.score(images, prompts)

        phases = _rounds(f"{workload.model}: scorer", line, "score", score, rounds, progress)
    return {
        **_rates("images_per_s", len(images), [sum(p.values()) for p in phases]),
        "images": len(images),
        "image_size": list(image_size),
        "scorer": scorer.name,
        "seconds": spread([sum(p.values()) for p in phases]),
        "rounds": rounds,
        **_setting("float32", config.sampler.threads, device, memory),
    }


def _rounds(
    name: str,
    line: Timeline,
    first: str,
    work: Callable[[int], None],
    rounds: int,
    progress: Progress,
    watch: UNetWatch | None = None,
) -> list[Phases]:
    """Seconds by phase of each round, after one to warm up; the watch counts the same rounds."""
    found: list[Phases] = []
    for index in range(rounds + 1):
        progress(name, index, rounds + 1)
        if index == 1 and watch is not None:
            watch.reset()
        line.start(first)
        work(index)
        found.append(line.seconds())
    progress(name, rounds + 1, rounds + 1)
    return found[1:]


def _rates(name: str, count: int, seconds: Sequence[float]) -> dict[str, Any]:
    rates = spread([count / s for s in seconds])
    return {name: rates["median"], "quartiles": [rates["quartile_low"], rates["quartile_high"]]}


def _work(flops: float, phases: Sequence[Phases], rate: float) -> dict[str, Any]:
    """flops: of a round, on average; learners' rounds differ in the reference log-probs that are known already."""
    seconds = [sum(p.values()) for p in phases]
    per_second = flops * len(phases) / sum(seconds)
    return {
        "flops": flops,
        "flops_per_s": per_second,
        "matmul_flops_per_s": rate,
        "share": per_second / rate,
        "seconds": spread(seconds),
        "phases": median_phases(phases),
        "rounds": len(phases),
    }


def _setting(dtype: str, threads: int, device: torch.device, memory: PeakMemory) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "threads": threads,
        "device": device_name(device),
        "peak_bytes": memory.peak_bytes,
        "peak_bytes_are": memory.what,
    }
