"""Which role gets how much of which GPU: decided from the configuration and how many there are."""

from __future__ import annotations

import math
from dataclasses import dataclass

from raydense.config import Config, ConfigError
from raydense.pipelines.pipeline_files import PipelineFiles
from raydense.planning.dry_run import plan_run, size
from raydense.wiring.devices import resolve_device

GRAIN = 10_000  # Ray counts fractions of a GPU in ten-thousandths


@dataclass(frozen=True)
class Placement:
    """The fleet: how many are asked for, how many must be ready when work begins, and what each actor reserves."""

    samplers: int
    minimum: int
    sampler_gpus: float
    learner_gpus: float  # of each of the learner's workers

    def beside_the_learner(self) -> int:
        """How many samplers may lie on a GPU of the learner."""
        if not 0 < self.sampler_gpus <= 1 - self.learner_gpus < 1:
            return 0
        return min(self.samplers, math.floor(round((1 - self.learner_gpus) / self.sampler_gpus, 6)))


def place(config: Config, gpus: int) -> Placement:
    """Settles what the configuration leaves open.

    One GPU: the learner takes half, the samplers share the other half; they work in turns. Several: each of the
    learner's workers takes one, and the others have a sampler each, or as many as `samplers.count` asks for, shared
    evenly. Of a fleet that grows (`samplers.max`), each sampler has a whole GPU where there is one.
    Args: gpus: of the whole cluster.
    Raises: ConfigError if the learner leaves no GPU for samplers that should have one, or an actor's device is not
        among those that it is given.
    """
    fleet, learner = config.samplers, config.learner
    learner_gpus = learner.num_gpus
    if learner_gpus is None:
        learner_gpus = 0.0 if gpus == 0 or _stays_off_gpus(learner.device) else 0.5 if gpus == 1 else 1.0
    if learner.num_workers > 1 and 0 < learner_gpus < 1:
        raise ConfigError(
            f"learner.num_workers={learner.num_workers} with learner.num_gpus={learner_gpus:g} each would share a GPU, "
            "on which they cannot exchange gradients; give each a whole one, or set learner.num_gpus=0"
        )
    left = gpus - learner.num_workers * learner_gpus
    now = max(1, math.floor(left))
    count = fleet.max or fleet.count or now
    minimum = fleet.min if fleet.min is not None else 1 if fleet.max else count
    sampler_gpus = fleet.num_gpus
    if sampler_gpus is None:
        if gpus == 0 or _stays_off_gpus(config.sampler.device):
            sampler_gpus = 0.0
        elif left <= 0:
            raise ConfigError(
                f"learner.num_gpus={learner_gpus:g}{of_workers(config)} leaves no GPU of {gpus} for "
                "samplers.num_gpus=null; lower it, or set samplers.num_gpus=0 to sample on CPUs"
            )
        else:
            sampler_gpus = _even_share(left, min(now, count) if fleet.max else count)
    placement = Placement(count, min(minimum, count), sampler_gpus, learner_gpus)
    _check_given(config, gpus, placement)
    return placement


def of_workers(config: Config) -> str:
    """For messages: how often the learner's resources are taken, where it is more than once."""
    workers = config.learner.num_workers
    return "" if workers == 1 else f" of each of learner.num_workers={workers}"


def check_one_worker(config: Config, who: str) -> None:
    """Raises: ConfigError if a run in one process should have several learner workers. Args: who: has one process."""
    if (workers := config.learner.num_workers) > 1:
        raise ConfigError(f"learner.num_workers={workers}: {who} has one process; add --set learner.num_workers=1")


def check_devices(config: Config) -> None:
    """Raises: ConfigError if sampler, learner or a judge names a device that this process does not have."""
    for setting, device in _devices(config):
        resolve_device(device, setting)


def check_shared_memory(config: Config, pipeline: PipelineFiles, free_bytes: int, samplers: int) -> None:
    """Raises: ConfigError if so many samplers and the learner, with all that they hold, do not fit into one GPU."""
    plan = plan_run(config, pipeline, None, tflops=1.0)
    needed = samplers * plan.sampler_gpu_bytes + plan.learner_gpu_bytes
    if needed > free_bytes:
        which = "the sampler needs" if samplers == 1 else f"each of {samplers} samplers needs"
        raise ConfigError(
            f"one GPU for both roles: {which} about {size(plan.sampler_gpu_bytes)} and the learner "
            f"{size(plan.learner_gpu_bytes)}, but {size(free_bytes)} are free; lower sampler.unit_prompts, "
            "sampler.decode_batch or learner.micro_batch, set learner.gradient_checkpointing=true or a 16-bit dtype, "
            "or add a GPU"
        )


def _check_given(config: Config, gpus: int, placement: Placement) -> None:
    """Raises: ConfigError if an actor's device is not among those that Ray gives it."""
    for setting, device in _devices(config):
        of_learner = setting == "learner.device"
        own = placement.learner_gpus if of_learner else placement.sampler_gpus
        if device.startswith("cuda") and int(device.partition(":")[2] or 0) >= own:
            raise ConfigError(
                f"{setting}={device}: its actor is given {own:g} of the cluster's GPUs ({gpus}), and counts its own "
                f"from cuda:0; set auto or cpu, or {'learner' if of_learner else 'samplers'}.num_gpus"
            )


def _devices(config: Config) -> list[tuple[str, str]]:
    """Settings and their devices; a judge works in its sampler's process."""
    judges = [(f"scorer {j.name}: device", j.device) for j in config.reward.judges if hasattr(j, "device")]
    return [("sampler.device", config.sampler.device), ("learner.device", config.learner.device), *judges]


def _even_share(left: float, count: int) -> float:
    """The largest share of at most one GPU such that `count` of them fit into `left` GPUs, each into a single one."""
    if left < 1:
        return math.floor(left / count * GRAIN) / GRAIN
    a_gpu = math.ceil(count / math.floor(left))
    return math.floor(GRAIN / a_gpu) / GRAIN


def _stays_off_gpus(device: str) -> bool:
    return device in ("cpu", "mps")
