"""Does anything grow over 300 stages? `python tests/benchmarks/long_run.py [--stages 300] [--local] [--json FILE]`.

Trains the embedded model in small stages, looks at the processes every second, and fits a line through what was seen
after the first quarter: memory, open files and threads of each role, and seconds a stage. Printed are the value at the
end, and the growth over 100 stages with its 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import psutil
from scipy import stats

SMALL = (
    "stage.groups=4", "stage.steps=2", "sampler.unit_prompts=4", "train.batch_groups=4", "learner.micro_batch=4",
    "samplers.count=1", "evaluate.prompts=2", "evaluate.images_per_prompt=1", "evaluate.grid_prompts=1",
    "evaluate.grid_images=1",
)  # fmt: skip
ROLES = {"ray::Sampler": "sampler", "ray::Learner": "learner", "raylet/raylet": "raylet", "gcs_server": "gcs"}
Series = list[tuple[int, float]]  # stages done, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", type=int, default=300)
    parser.add_argument("--local", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    settings = [word for s in (*SMALL, f"stage.count={arguments.stages}") for word in ("--set", s)]
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "run"
        command = [sys.executable, "-m", "raydense.cli", "train", *settings, "--out", str(out)]
        run = subprocess.Popen([*command, *(["--local"] if arguments.local else [])], stdout=subprocess.DEVNULL)
        series = watch(run, out)
        if run.wait() != 0:
            sys.exit(f"the run failed with exit code {run.returncode}")
    result = {name: fit(values, arguments.stages) for name, values in sorted(series.items())}
    for name, found in result.items():
        print(f"{name:24} {found['end']:10.4g}   {found['growth']:+9.3g} [{found['low']:+.3g}, {found['high']:+.3g}]")
    if arguments.json:
        arguments.json.write_text(json.dumps(result), encoding="utf-8")


def watch(run: subprocess.Popen[bytes], out: Path) -> dict[str, Series]:
    """What each role takes while the run is on, by the number of stages done."""
    series: dict[str, Series] = defaultdict(list)
    before, since = 0, time.perf_counter()
    while run.poll() is None:
        time.sleep(1.0)
        done = stages_done(out)
        if done > before:
            now = time.perf_counter()
            if before:
                series["seconds a stage"].append((done, (now - since) / (done - before)))
            before, since = done, now
        if done:
            for process in [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]:
                look(process, run.pid, done, series)
    return series


def stages_done(out: Path) -> int:
    path = out / "metrics.jsonl"
    return path.read_text("utf-8").count('"kind": "stage"') if path.exists() else 0


def look(process: psutil.Process, driver: int, done: int, series: dict[str, Series]) -> None:
    try:
        words = " ".join(process.cmdline())
        role = "driver" if process.pid == driver else next((r for part, r in ROLES.items() if part in words), None)
        if role:
            memory = process.memory_full_info()  # of which shared: the object store that a process has looked into
            series[f"{role}: MB"].append((done, memory.uss / 1e6))
            series[f"{role}: MB with shared"].append((done, memory.rss / 1e6))
            series[f"{role}: open files"].append((done, float(process.num_fds())))
            series[f"{role}: threads"].append((done, float(process.num_threads())))
    except psutil.Error:
        return


def fit(values: Series, stages: int) -> dict[str, float]:
    """Growth over 100 stages by a line through what came after the first quarter."""
    x, y = np.array([(stage, value) for stage, value in values if stage > stages / 4]).T
    line = stats.linregress(x, y)
    width = stats.t.ppf(0.975, len(x) - 2) * line.stderr
    ends = {"growth": line.slope, "low": line.slope - width, "high": line.slope + width}
    return {"end": float(y[-1]), **{name: 100 * float(value) for name, value in ends.items()}}


if __name__ == "__main__":
    main()
