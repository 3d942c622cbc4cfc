"""Peak memory of a process that takes gradient steps, ours against the published way; a part of `compare.py`."""

from __future__ import annotations

import resource
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from published import Published, batch_source

from raydense.bench.architectures import bench_policy
from raydense.config import Config
from raydense.core.types import TrajectoryGroup
from raydense.wiring.roles import make_learner


def peak_bytes_of(which: str, model: str, config: Config) -> int:
    """Peak resident memory of a process that takes two gradient steps one way."""
    policy = bench_policy(model, config, dtype=torch.float32, device=torch.device("cpu"), with_decoder=False)
    shape = (config.sampler.keep, config.steps.count + 1, *policy.family.latent_shape)
    given = {name: tensor.numpy() for name, tensor in policy.encode("a cat").items()}
    group = TrajectoryGroup(0, 0, "a cat", given, np.zeros(shape, np.float16),
                            np.zeros(shape[:2], np.float32), np.arange(shape[0], dtype=np.float32), 0, "")  # fmt: skip

    def fetch(indices: Any) -> list[TrajectoryGroup]:
        return [replace(group, index=i) for i in indices]

    if which == "ours":
        learner: Any = make_learner(config, policy, fetch)
        learner.begin_stage(0, list(range(config.stage.groups)))
        learner.train(2)
    else:
        published = Published(policy, config)
        del policy.network
        draws = batch_source(config, fetch, policy.device)
        draws.begin_stage(0, list(range(config.stage.groups)))
        for step in range(2):
            published.step(draws.take(step).parts[0][1], ["a cat"] * config.train.batch_groups)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def compare_memory(argv: list[str]) -> dict[str, float]:
    peaks = {}
    for which in ("published", "ours"):
        done = subprocess.run([sys.executable, *argv, "--memory-of", which], check=True, capture_output=True, text=True)
        peaks[which] = int(done.stdout.split()[-1])
    return {"published_bytes": peaks["published"], "ours_bytes": peaks["ours"],
            "share": round(peaks["ours"] / peaks["published"], 3)}  # fmt: skip
