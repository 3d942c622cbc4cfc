"""The run's components as Ray actors; the stage loop on them is the local one, unchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch

from actors.dispatch import Deadlines
from actors.ray_departures import Departures
from actors.ray_fleet import RayFleet
from learner.ray_learner import RayLearner, fetch_groups
from raydense.config import Config
from raydense.core.interfaces import Fleet
from raydense.core.types import UnitReport
from raydense.fleets.archive import ArchivingFleet
from raydense.fleets.ray_cluster import GB, check_resources, ray_session
from raydense.pipelines.base_model import BaseModel
from raydense.pipelines.pipeline_files import PipelineFiles
from raydense.planning.micro_batch import FreeGpu, settled
from raydense.planning.placement import Placement, check_shared_memory, place
from raydense.records.segments import is_written
from raydense.wiring.roles import build_learner, build_sampler_process


@contextmanager
def build_on_ray(
    config: Config,
    pipeline: PipelineFiles,
    base: BaseModel,
    segments: Path,
    about: Mapping[str, str] = {},  # never changed
) -> Iterator[tuple[Fleet[Any], Callable[[], RayLearner]]]:
    """Starts fleet and learner side by side, and stops them at the end; called again, the learner is a new one.

    Args: about: the run, for Ray's list of jobs.
    """
    with ray_session(about):
        placement = place(config, int(ray.cluster_resources().get("GPU", 0)))
        check_resources(config, placement)
        if (samplers := placement.beside_the_learner()) and (free := _free_gpu_bytes(config, placement)) is not None:
            check_shared_memory(config, pipeline, free, samplers)
        learner = RayLearner(
            partial(build_learner, config),
            num_cpus=config.learner.num_cpus,
            num_gpus=placement.learner_gpus,
            memory=int(config.learner.memory_gb * GB),
            workers=config.learner.num_workers,
            timeout_s=config.learner.timeout_s,
            patience_s=config.samplers.patience_s,
            labels=config.learner.labels,
            run=config.name,
            base=base,
        )
        fleet = _fleet(config, base, placement, _departures(config, learner))
        try:
            fleet.wait_ready()
            archive = ArchivingFleet(
                fleet,
                segments,
                fetch=fetch_groups,
                put=ray.put,
                segments=config.replay.segments,
                keep=config.replay.keep_segments,
                older=config.stage.held - 1,
            )
            yield archive, learner.started
        finally:
            fleet.shutdown()
            learner.shutdown()


@contextmanager
def sampling_fleet_on_ray(config: Config, base: BaseModel) -> Iterator[Fleet[Any]]:
    """Samplers alone, to draw and judge; stops them at the end."""
    with ray_session({"job_name": config.name}):
        placement = place(config, int(ray.cluster_resources().get("GPU", 0)))
        check_resources(config, placement)
        fleet = _fleet(config, base, placement)
        try:
            fleet.wait_ready()
            yield fleet
        finally:
            fleet.shutdown()


def _departures(config: Config, learner: RayLearner) -> Departures:
    """What goes into a segment comes to this process first, and from either node to the learner; all else to the
    learner alone."""
    here = ray.get_runtime_context().get_node_id()

    def fetch(report: UnitReport, groups: Sequence[Any]) -> None:
        if is_written(report.groups[0].nbytes, config.replay.segments):
            ray.wait(list(groups), num_returns=len(groups), timeout=0)  # Ray goes on with it
        else:
            learner.fetch_ahead(groups)

    return Departures(fetch, lambda: {here, *learner.nodes})


def _fleet(config: Config, base: BaseModel, placement: Placement, departures: Departures | None = None) -> RayFleet:
    settings = config.samplers
    return RayFleet(
        partial(build_sampler_process, config),
        maximum=placement.samplers,
        minimum=placement.minimum,
        num_cpus=settings.num_cpus,
        num_gpus=placement.sampler_gpus,
        memory=int(settings.memory_gb * GB),
        deadlines=Deadlines(settings.hang_s, settings.hang_factor, settings.hang_floor_s),
        patience_s=settings.patience_s,
        run_seed=config.seed,
        labels=settings.labels,
        run=config.name,
        base=base,
        departures=departures,
    )


@contextmanager
def settled_on_ray(config: Config, pipeline: PipelineFiles, about: Mapping[str, str]) -> Iterator[Config]:
    """`settled` by the GPU that the learner will have; the session that this takes goes on inside the context.

    Args: about: the run, for Ray's list of jobs.
    """
    with ray_session(about):
        yield settled(config, pipeline, _learner_gpu)


def _learner_gpu(config: Config) -> FreeGpu | None:
    placement = place(config, int(ray.cluster_resources().get("GPU", 0)))
    check_resources(config, placement)
    free = _free_gpu_bytes(config, placement) if placement.learner_gpus else None
    return None if free is None else FreeGpu(free, placement.beside_the_learner())


def _free_gpu_bytes(config: Config, placement: Placement) -> int | None:
    """None where PyTorch finds no GPU behind Ray's."""

    def look() -> int | None:
        return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None

    options = {"num_gpus": placement.learner_gpus, "num_cpus": 0, "label_selector": config.learner.labels}
    once = ray.remote(max_calls=1, **options)(look)  # its process, and its memory, end with it
    free: int | None = ray.get(once.remote())
    return free
