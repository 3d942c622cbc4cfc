"""The gradient by denoising step, at the output and in the parameters: `python tests/benchmarks/credit.py RUN`.

RUN kept its groups and checkpoints (`replay.segments=true`, `replay.keep_segments=true`, `checkpoint.keep_last` ≥ its
stages). After the last gradient step of each stage a further one is taken apart: each transition has a backward pass of
its own. Printed are shares of squared norms, summed over draws; `a draw` as if every step were drawn equally often.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.by_step import BY_DRAW, SLOPES
from learner.objective import DensePreference
from learner.rival_objectives import PolicyGradient
from learner.sgd_learner import SGDLearner
from learner.transitions import TransitionBatch, transition_log_probs
from raydense.core.types import TrajectoryGroup
from raydense.records.checkpoint_files import load_checkpoint
from raydense.records.run_dir import RunDirectory
from raydense.records.segments import read_segment
from raydense.wiring.roles import build_learner

Values = NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    run = RunDirectory(parser.parse_args().run)
    config = run.read_config()
    learner = build_learner(config, lambda groups: groups)
    parts = []
    for stage in range(config.stage.count):
        if (after := run.checkpoints / f"stage-{stage + 1:04d}").is_dir():
            learner.load_state_dict(load_checkpoint(after).learner)
            learner.begin_stage(stage, stored_groups(run, stage))
            parts.append(taken_apart(learner, (stage + 1) * config.stage.steps))
    draws, output, parameters, whole = np.sum(parts, axis=0)
    columns = {
        "output": output,
        "parameters": parameters,
        "parameters, draws added up": whole,
        "output, a draw": output / np.maximum(1, draws),
        "parameters, a draw": parameters / np.maximum(1, draws),
    }
    print(f"{len(parts)} gradient steps\n| step | draws | " + " | ".join(columns) + " |")
    print("|---|" + "---:|" * (1 + len(columns)))
    for step, count in enumerate(draws):
        shares = " | ".join(f"{values[step] / values.sum():.1%}" for values in columns.values())
        print(f"| {step} | {count:.0f} | {shares} |")


def stored_groups(run: RunDirectory, stage: int) -> list[TrajectoryGroup]:
    files = sorted((run.segments / f"stage-{stage:04d}").glob("*.arrow"))
    return sorted((group for file in files for group in read_segment(file)[1]), key=lambda group: group.index)


def taken_apart(learner: SGDLearner[TrajectoryGroup], step: int) -> Values:
    """Of a gradient step, by denoising step: draws, squared gradients at the output and in the parameters, each summed
    over draws, and the square of what the draws' gradients in the parameters add up to: [4, T]."""
    policy, objective = learner.policy, learner._objective
    assert isinstance(objective, DensePreference | PolicyGradient)
    batch = learner._batches.take(step)
    objective.begin_step(step, batch.fingerprints)
    steps = policy.schedule.num_steps
    draws, squares, measured = np.zeros(steps), np.zeros(steps), dict[str, list[Tensor]]()
    sums = torch.zeros(steps, sum(p.numel() for p in policy.parameters()))
    for _, part in batch.parts:
        assert isinstance(part, TransitionBatch)
        _, values = objective.loss(part)
        for name in BY_DRAW:
            measured.setdefault(name, []).append(values[name])
        slope, places = values[SLOPES].flatten() / len(batch.plan), part.draws.flatten()
        weight, square = (torch.zeros(len(part.t)).index_add(0, places, s) for s in (slope, slope**2))
        for place, t in enumerate(part.t.tolist()):
            draws[t] += int((places == place).sum())
            if square[place] > 0:
                log_prob = transition_log_probs(policy, part, torch.tensor([place])).sum()
                gradient = torch.cat([g.flatten() for g in torch.autograd.grad(log_prob, policy.parameters())])
                squares[t] += float(gradient.square().sum() * square[place])
                sums[t] += weight[place] * gradient
    told = objective._by_step.read(batch.plan, {name: torch.cat(them).numpy() for name, them in measured.items()})
    output = draws * [(value or 0.0) ** 2 for value in told["gradient"]]
    return np.stack([draws, output, squares, sums.square().sum(1).numpy()])


if __name__ == "__main__":
    main()
