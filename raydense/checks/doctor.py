"""`raydense doctor`, for before the first GPU-hour: checks the machine, then tries the real thing once."""

from __future__ import annotations

import math
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import torch
from packaging.requirements import Requirement

from raydense.checks.check import Check
from raydense.checks.noise import drifted, log_ratios
from raydense.config import Config, ConfigError
from raydense.core.interfaces import NonFiniteStepError
from raydense.core.messages import one_line
from raydense.core.types import TrajectoryGroup
from raydense.diffusion.policy import Policy
from raydense.families.conditioning import repeated
from raydense.planning.dry_run import Plan, plan_run, size
from raydense.planning.micro_batch import local_gpu, settled
from raydense.planning.placement import place
from raydense.planning.preflight import Found, check_inputs
from raydense.planning.units import stage_units
from raydense.wiring.roles import build_learner, build_sampler

NOISE_SHARE = 3  # times the error of a log-ratio: a clip below that cuts noise
NOISE_STEPS = 8  # denoising steps of one trajectory


def examine(config: Config, out: Path, tflops: float) -> Iterator[Check]:
    """Yields every check as it is made; the trial comes last, and only if the inputs are sound."""
    yield from _versions()
    yield _devices(config)
    try:
        found = check_inputs(config)
        plan = plan_run(config, found.pipeline, found.prompts, tflops)
    except ConfigError as error:
        yield Check("model, scorer, prompts", False, str(error))
        return
    sets = found.prompts
    notes = "; ".join(found.notes) or f"{len(sets.train):,} train and {len(sets.unseen):,} unseen prompts"
    yield Check("model, scorer, prompts", True, notes)
    yield _disk(out, plan)

    from raydense.checks.ray_doctor import check_ray

    yield from check_ray(config, plan)
    yield from _trial(found, plan)


def _versions() -> Iterator[Check]:
    """Every requirement of the package against what is installed."""
    wrong = []
    for line in requires("raydense") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement} is missing")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found} is not {requirement.specifier}")
    python = sys.version.split()[0]
    shown = ", ".join(f"{name} {version(name)}" for name in ("raydense", "ray", "torch", "diffusers"))
    yield Check("versions", not wrong, "; ".join(wrong) or f"Python {python}, {shown}")


def _devices(config: Config) -> Check:
    wanted = bool(config.samplers.num_gpus or config.learner.num_gpus)
    if not torch.cuda.is_available():
        return Check("GPUs", not wanted, "none here" + (", but the configuration reserves some" if wanted else ""))
    properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return Check("GPUs", True, ", ".join(f"{p.name} ({size(p.total_memory)})" for p in properties))


def _disk(out: Path, plan: Plan) -> Check:
    existing = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    free, needed = shutil.disk_usage(existing).free, plan.segment_bytes + plan.checkpoint_bytes
    return Check("disk", free > needed, f"{size(free)} free at {existing}, {size(needed)} needed")


def _trial(found: Found, plan: Plan) -> Iterator[Check]:
    """One work unit and one learner step in this process, twice each: the first of a kind warms up."""
    config, files = found.config, found.pipeline
    unit = stage_units(config, found.prompts.train, 0, 0)[0]
    try:
        learner: Any = build_learner(settled(config, files, local_gpu), lambda groups: groups, files=files)
        sampler = build_sampler(config, files=files)
        sampler.sample(unit, learner.weights())
        started = time.perf_counter()
        report, groups = sampler.sample(unit, learner.weights())
        unit_s = time.perf_counter() - started
        learner.begin_stage(0, groups)
        values = learner.train(1)[0].values
        if values["skipped"]:
            raise NonFiniteStepError("the first gradient step has no finite loss or gradient")
        started = time.perf_counter()
        learner.train(1)
        step_s = time.perf_counter() - started
        noise = _log_ratio_noise(config, learner.policy, groups[0])
    except Exception as error:  # whatever it is, it is what the run would have died of
        kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
        yield Check("trial", False, f"{kind}{one_line(error)}")
        return
    yield Check("work unit", True, f"{unit_s:.3g} s for {_images(config, groups)} images, {_rewards(report)}")
    for name, failure in report.failures.items():
        yield Check(f"monitor {name}", False, failure)
    yield Check("learner step", True, f"{step_s:.3g} s")
    yield Check("memory", True, _memory())
    yield Check("ρ noise", math.isfinite(noise), _verdict(noise, config.train.clip, "learner.dtype=float32"))
    if config.train.needs_old:
        apart = _verdict(values["log_ratio/old_abs_mean"], config.train.clip, "one dtype for sampler and learner")
        yield Check("π_old noise", True, apart)
    yield Check("time", True, _estimate(config, plan, unit_s / _images(config, groups), step_s))


def _log_ratio_noise(config: Config, policy: Policy, group: TrajectoryGroup) -> float:
    """Root mean square over the denoising steps that the loss draws, for a LoRA as it is early in a run.

    Args: config: resolved.
    """
    weights = policy.weights()
    policy.bind(drifted(policy))
    latents = torch.from_numpy(group.latents[0].copy()).to(policy.device)
    drawn = config.steps.drawn  # of the others, some have no density
    t = torch.linspace(drawn[0], drawn[-1], min(NOISE_STEPS, len(drawn))).long().to(policy.device)
    at = t - group.first_step
    given = {name: torch.from_numpy(array.copy()).to(policy.device) for name, array in group.conditioning.items()}
    own, exact = log_ratios(policy, latents[at], latents[at + 1], t, repeated(given, len(t)))
    policy.bind(weights)
    return float((own - exact).square().mean().sqrt())


def _verdict(noise: float, clip: float | str, remedy: str) -> str:
    if isinstance(clip, str):
        return f"a log-ratio is off by {noise:.2g}; train.clip={clip} stays clear of it"
    verdict = f"a log-ratio is off by {noise:.2g}, δ {clip:g}"
    return verdict if clip >= NOISE_SHARE * noise else f"{verdict}: below {NOISE_SHARE} times that; {remedy} helps"


def _images(config: Config, groups: list[TrajectoryGroup]) -> int:
    return len(groups) * config.sampler.trajectories


def _rewards(report: Any) -> str:
    rewards = [reward for group in report.groups for reward in group.rewards]
    return f"mean reward {sum(rewards) / len(rewards):.4g}"


def _memory() -> str:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    text = f"peak {size(peak)} in this process, with sampler and learner"
    if torch.cuda.is_available():
        text += f", {size(torch.cuda.max_memory_allocated())} on the GPU"
    return text


def _estimate(config: Config, plan: Plan, image_s: float, step_s: float) -> str:
    """Hours of the run, if every sampler were as fast as this process."""
    samplers = place(config, torch.cuda.device_count()).samplers
    sampling, training = plan.sampled_images * image_s / samplers, config.stage.count * config.stage.steps * step_s
    return (
        f"{(sampling + training) / 3600:.3g} h: {sampling / 3600:.3g} h sampling on {samplers} samplers, "
        f"{training / 3600:.3g} h training"
    )
