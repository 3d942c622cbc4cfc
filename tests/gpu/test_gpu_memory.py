"""`pytest -m gpu`: what was planned of a GPU's memory is what it takes, and what runs out is said in a line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from rehearsal import ON_A_GPU, REHEARSAL

from raydense.config import Config
from raydense.core.memory import DeviceMemoryError
from raydense.core.types import TrajectoryGroup, WorkUnit
from raydense.pipelines.pipeline_files import read_pipeline
from raydense.planning.dry_run import plan_run
from raydense.planning.memory import CUDA_CONTEXT
from raydense.planning.micro_batch import local_gpu, settled
from raydense.wiring.policies import build_policy
from raydense.wiring.roles import build_learner, build_sampler

CLOSE = 0.15  # of a memory plan
pytestmark = ON_A_GPU


def peak(work: Callable[[], object]) -> int:
    """Bytes that PyTorch's allocator gave out at once."""
    if REHEARSAL:
        work()
        return 0
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    print(f"allocated {torch.cuda.max_memory_allocated():.3g}, reserved {torch.cuda.max_memory_reserved():.3g}")
    return torch.cuda.max_memory_allocated()


@pytest.mark.parametrize("role", ["sampler", "learner", "learner with micro_batch=auto"])
def test_memory_is_what_was_planned(config: Config, groups: list[TrajectoryGroup], role: str) -> None:
    pipeline, free = read_pipeline(config.policy.model, None, fetch=False), float("inf")
    if role == "sampler":
        sampler = build_sampler(config)
        unit = WorkUnit(0, 0, tuple(range(8)), ("a cat",) * 8, 0)  # 32 pictures, as are drawn to judge
        weights = build_policy(config, dtype="bfloat16", device=torch.device("cpu"), with_decoder=False).weights()
        work: Callable[[], object] = partial(sampler.sample, unit, weights)
        planned = plan_run(config, pipeline, None, tflops=1.0).sampler_gpu_bytes
    else:
        if role != "learner":
            train, stage = {"batch_groups": 32}, {"groups": 32}
            config = config.model_copy(
                update={
                    "train": config.train.model_copy(update=train),
                    "stage": config.stage.model_copy(update=stage),
                    "learner": config.learner.model_copy(update={"micro_batch": "auto"}),
                }
            )
            torch.cuda.empty_cache()
            free = free if REHEARSAL else torch.cuda.mem_get_info()[0]
            config = settled(config, pipeline, local_gpu)
            print(f"micro_batch=auto is {config.learner.micro_batch}")
        learner: Any = build_learner(config, fetch=lambda handles: [replace(groups[i % 3], index=i) for i in handles])
        learner.begin_stage(0, list(range(config.stage.groups)))
        work, planned = partial(learner.train, 1), plan_run(config, pipeline, None, tflops=1.0).learner_gpu_bytes
    assert planned <= free
    found = peak(work)
    print(f"planned {planned - CUDA_CONTEXT:.3g}, found {found:.3g}")
    assert REHEARSAL or planned - CUDA_CONTEXT == pytest.approx(found, rel=CLOSE)


def test_memory_that_runs_out_is_one_line_with_what_to_lower(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler: Any = build_sampler(config)
    weights = build_policy(config, dtype="bfloat16", device=torch.device("cpu"), with_decoder=False).weights()
    if REHEARSAL:  # a CPU's memory is not fenced

        def run_out(latents: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has none")

        monkeypatch.setattr(sampler._policy, "decode", run_out)
    else:
        torch.cuda.empty_cache()
        allowed = torch.cuda.memory_allocated() + 1e9
        torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(0).total_memory)
    try:
        unit = WorkUnit(0, 0, tuple(range(24)), ("a cat",) * 24, 0)
        with pytest.raises(DeviceMemoryError, match=r"^CUDA out of memory[^\n]*; lower sampler.unit_prompts or"):
            sampler.sample(unit, weights)
    finally:
        if not REHEARSAL:
            torch.cuda.set_per_process_memory_fraction(1.0)
