"""The default run beside other work: `python tests/benchmarks/busy.py [--local] [--set stage.count=2]`.

Runs `raydense train` on an otherwise idle machine, then with one core kept busy by another process of normal priority,
then with two, and prints the seconds and their ratios; then all again for every further round.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOADS = (0, 1, 2)  # busy processes
BUSY = "while True: pass"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--local", action="store_true")
    parser.add_argument("--set", nargs="*", default=[], help="overrides of the default run")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--loads", type=int, nargs="*", default=list(LOADS))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    settings = [word for setting in arguments.set for word in ("--set", setting)]
    command = [sys.executable, "-m", "raydense.cli", "train", *settings, *(["--local"] if arguments.local else [])]
    seconds: dict[int, list[float]] = {load: [] for load in arguments.loads}
    for _ in range(arguments.rounds):
        for load in arguments.loads:
            seconds[load].append(run(command, load))
            print(f"{load} busy: {seconds[load][-1]:.1f} s", flush=True)
    medians = {load: statistics.median(values) for load, values in seconds.items()}
    idle = medians[arguments.loads[0]]
    result = {"seconds": seconds, "ratios": {load: median / idle for load, median in medians.items()}}
    print(json.dumps(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result), encoding="utf-8")


def run(command: list[str], load: int) -> float:
    """Seconds of the whole command, beside so many busy processes."""
    out = tempfile.mkdtemp()
    try:
        with busy(load):
            started = time.perf_counter()
            subprocess.run([*command, "--out", f"{out}/run"], check=True, stdout=subprocess.DEVNULL)
            return time.perf_counter() - started
    finally:
        shutil.rmtree(out)


@contextmanager
def busy(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
