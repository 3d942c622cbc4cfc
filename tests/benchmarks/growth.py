"""How a gradient step's cost grows: `python tests/benchmarks/growth.py [--json FILE] [--plot FILE.svg]`.

One setting at a time is varied around a base on the embedded model: trajectories a tuple (K), step draws (N_step),
groups a batch, latent size, and groups in the stage. Times: all points in this process in turns, one thread, median and
quartiles of the rounds. Memory: what the process takes beyond that before the steps, at its peak, each point in a
process of its own after a warm-up. Reference log-probs are computed anew, as where nothing was drawn before. The
exponent is the slope of log cost over log setting.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from actors.sampler import rollout
from raydense.bench.architectures import MODELS, bench_policy
from raydense.config import Config
from raydense.core.threads import cpu_threads
from raydense.core.types import TrajectoryGroup
from raydense.diffusion.policy import Policy
from raydense.families.conditioning import repeated
from raydense.wiring.roles import make_learner

BASE = [
    "sampler.guidance_scale=7.5",
    "sampler.latent_size=8",
    "learner={threads: 1, micro_batch: null, cache_references: false}",
    "train={batch_groups: 4, tuple_size: 2, tuple_choice: random, lr: 1e-3, clip: 5e-2}",
    "steps.draws=3",
]
DISTINCT = 4  # groups that were rolled out; the stage's are these again and again


@dataclass(frozen=True)
class Axis:
    """One setting, its values, and the overrides that set it."""

    title: str
    values: tuple[int, ...]
    overrides: tuple[str, ...]


AXES = {
    "K": Axis("trajectories a tuple, K", (2, 3, 5, 8), ("sampler.trajectories={}", "sampler.keep={}",
                                                       "train.tuple_size={}")),
    "draws": Axis("step draws, $N_{step}$", (1, 3, 6, 12), ("steps.draws={}",)),
    "batch": Axis("groups a batch", (2, 4, 8, 16), ("train.batch_groups={}",)),
    "latent": Axis("latent elements", (8, 12, 16, 20), ("sampler.latent_size={}",)),
    "groups": Axis("groups in the stage", (40, 80, 320, 1280), ("stage.groups={}",)),
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """A value on an axis."""

    axis: str
    value: int

    @property
    def size(self) -> int:
        """What the cost is drawn over: a latent's elements, else the value."""
        return 4 * self.value**2 if self.axis == "latent" else self.value

    @property
    def config(self) -> Config:
        return MODELS["tiny"].config(*BASE, *(o.format(self.value) for o in AXES[self.axis].overrides))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--axes", nargs="*", choices=list(AXES), default=list(AXES))
    parser.add_argument("--what", nargs="*", choices=["time", "memory"], default=["time", "memory"])
    parser.add_argument("--points", type=int, default=4, help="of each axis, the smallest first")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="an SVG file")
    parser.add_argument("--memory-of", nargs=2, metavar=("AXIS", "VALUE"), help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.memory_of:
        print(step_bytes(Point(chosen.memory_of[0], int(chosen.memory_of[1]))))
        return
    points = [Point(axis, value) for axis in chosen.axes for value in AXES[axis].values[: chosen.points]]
    settings = {point: point.config.to_yaml() for point in points}
    distinct = {text: point for point, text in settings.items()}  # the base lies on several axes
    costs: dict[str, dict[str, float]] = {text: {} for text in distinct}
    if "time" in chosen.what:
        for point, found in step_seconds(list(distinct.values()), chosen.rounds).items():
            costs[settings[point]] |= found
    if "memory" in chosen.what:
        for text, point in distinct.items():
            costs[text]["memory_bytes"] = memory_in_its_own_process(point)
    rows = {p: {"value": p.value, "size": p.size, "stage_bytes": stage_bytes(p), **costs[settings[p]]} for p in points}
    result = {axis: summary([rows[p] for p in points if p.axis == axis]) for axis in chosen.axes}
    print(json.dumps(result, indent=1))
    if chosen.json:
        chosen.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    if chosen.plot:
        plot(chosen.plot, result)


# -- what is measured -------------------------------------------------------------------------------------


def step_seconds(points: Sequence[Point], rounds: int) -> dict[Point, dict[str, float]]:
    """Median and quartiles of a gradient step, a step of each point a round."""
    with cpu_threads(1):
        policy = embedded_policy(points[0].config)
        learners = {point: learner_of(point.config, policy) for point in points}
        times: dict[Point, list[float]] = {point: [] for point in points}
        for number in range(rounds + 1):
            for point, learner in learners.items():
                started = time.perf_counter()
                learner.train(1)
                if number:  # the first is a warm-up
                    times[point].append(time.perf_counter() - started)
    names = ("low_s", "time_s", "high_s")
    return {p: dict(zip(names, map(float, np.quantile(t, [0.25, 0.5, 0.75])), strict=True)) for p, t in times.items()}


def memory_in_its_own_process(point: Point) -> int:
    command = [sys.executable, __file__, "--memory-of", point.axis, str(point.value)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def step_bytes(point: Point) -> int:
    """Peak resident memory of two gradient steps, less what the process had after its smallest step."""
    policy = embedded_policy(point.config)
    smallest = MODELS["tiny"].config(*BASE, "train.batch_groups=1", "steps.draws=1")
    learner_of(smallest, policy).train(1)
    learner = learner_of(point.config, policy)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the allocator keeps would be used again, unseen
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _status_bytes("VmRSS")
    learner.train(2)
    return _status_bytes("VmHWM") - before


def _status_bytes(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


def stage_bytes(point: Point) -> int:
    """Of the stage's latents, which lie in the object store in float16: known without measuring."""
    config = point.config
    states = config.stage.groups * config.sampler.keep * (config.steps.count + 1)
    return 2 * states * 4 * (config.sampler.latent_size or 0) ** 2


def embedded_policy(config: Config) -> Policy:
    return bench_policy("tiny", config, dtype=torch.float32, device=torch.device("cpu"), with_decoder=False)


def learner_of(config: Config, policy: Policy) -> Any:
    """A learner at the beginning of a stage of groups that `policy` rolled out."""
    groups = rolled_out(config, policy)

    def fetch(indices: Any) -> list[TrajectoryGroup]:
        return [replace(groups[i % DISTINCT], index=i) for i in indices]

    learner: Any = make_learner(config, policy, fetch)
    learner.begin_stage(0, list(range(config.stage.groups)))
    return learner


def rolled_out(config: Config, policy: Policy) -> list[TrajectoryGroup]:
    channels, *_ = policy.family.latent_shape  # one policy for latents of every size
    size = config.sampler.latent_size
    assert isinstance(size, int)
    shape = (config.sampler.keep, config.steps.count + 1, channels, size, size)
    draws, embeds = torch.Generator().manual_seed(0), policy.encode("a red circle")
    groups = []
    for index in range(DISTINCT):
        noise, rewards = torch.randn(shape, generator=draws), torch.randn(shape[0], generator=draws).numpy()
        latents, log_probs = (a.numpy() for a in rollout(policy, noise, repeated(embeds, shape[0]), torch.float16))
        given = {name: tensor.numpy() for name, tensor in embeds.items()}
        groups.append(TrajectoryGroup(0, index, "a red circle", given, latents, log_probs, rewards, 0, ""))
    return groups


# -- what is told -----------------------------------------------------------------------------------------


def summary(rows: list[dict[str, float]]) -> dict[str, Any]:
    """The points of an axis, and the exponents of what was measured at two or more."""
    sizes = np.log([row["size"] for row in rows])
    exponents = {
        what.partition("_")[0]: round(float(np.polyfit(sizes, np.log([row[what] for row in rows]), 1)[0]), 2)
        for what in ("time_s", "memory_bytes")
        if what in rows[0] and len(rows) > 1
    }
    return {"exponents": exponents, "points": rows}


def plot(path: Path, result: Mapping[str, Any]) -> None:
    """A panel an axis, as SVG: time above, memory below; logarithmic, with the dotted line of growth in proportion."""
    with mpl.rc_context({"svg.hashsalt": "growth", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(2.2 * len(result), 4.2), layout="constrained")
        panels = figure.subplots(2, len(result), squeeze=False, sharex="col", sharey="row")
        for column, (axis, found) in enumerate(result.items()):
            for panel, what, scale in ((panels[0][column], "time_s", 1e3), (panels[1][column], "memory_bytes", 2**-20)):
                if what in found["points"][0]:
                    _draw(panel, found, what, scale)
            panels[1][column].set_xlabel(AXES[axis].title)
        panels[0][0].set_ylabel("a gradient step, ms")
        panels[1][0].set_ylabel("its peak memory, MiB")
        drawing = io.StringIO()
        figure.savefig(drawing, format="svg", metadata={"Date": None, "Creator": None})
    short = re.sub(r"(\.\d\d)\d+", r"\1", re.sub(r"\n +", "\n", drawing.getvalue()))
    path.write_text(short, encoding="utf-8")


def _draw(panel: Any, found: Mapping[str, Any], what: str, scale: float) -> None:
    x = np.array([row["size"] for row in found["points"]], float)
    y = scale * np.array([row[what] for row in found["points"]])
    spread = None
    if what == "time_s":
        spread = [y - scale * np.array([row["low_s"] for row in found["points"]]),
                  scale * np.array([row["high_s"] for row in found["points"]]) - y]  # fmt: skip
    panel.errorbar(x, y, yerr=spread, fmt="o-", markersize=3.5, linewidth=1.2, capsize=2)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.axline((x[0], y[0]), (1.01 * x[0], 1.01 * y[0]), linestyle=":", color="grey", linewidth=1)
    panel.set_xticks(x, [f"{int(v)}" for v in x])
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.minorticks_off()
    exponent = found["exponents"].get(what.partition("_")[0])
    if exponent is not None:
        panel.set_title(f"exponent {exponent:.2f}", fontsize=9)


if __name__ == "__main__":
    main()
