"""Makes this folder's run directories and answers, with the code to be held to.

They were made with the code of commit 2501e24 (format 1 of a run directory), on the embedded model made small.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from raydense.config import load_config, preset_names

HERE = Path(__file__).resolve().parent
SMALL = ("policy.lora_rank=2", "steps.count=4", "sampler={trajectories: 3, keep: 3, unit_prompts: 2, "
         "shared_noise: true, guidance_scale: 1.0}", "stage={count: 2, groups: 4, steps: 3}",
         "train.batch_groups=2", "train.c=10",
         "evaluate={prompts: 2, images_per_prompt: 2, grid_prompts: 1, grid_images: 2}", "learner.threads=1",
         "replay={segments: true, keep_segments: true}", "checkpoint={every_steps: 1, keep_last: 2}",
         "telemetry.tensorboard=false", "reward.monitors=[]")  # fmt: skip


def raydense(*arguments: str | Path) -> str:
    """What the command prints. Raises: CalledProcessError."""
    command = [sys.executable, "-m", "raydense.cli", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=HERE).stdout


def cut_run(run: Path) -> None:
    """A run stopped by SIGTERM in the middle of its second stage's training."""
    options = [text for value in SMALL for text in ("--set", value)]
    command = [sys.executable, "-m", "raydense.cli", "train", "--local", *options, "--set", "stage.steps=40"]
    process = subprocess.Popen([*command, "--set", "name=cut", "--out", str(run)], cwd=HERE)
    while process.poll() is None and not (run / "checkpoints" / "stage-0001-step-000002").is_dir():
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM


def strip(run: Path) -> None:
    """Older checkpoints are left out, for their bytes."""
    for older in sorted((run / "checkpoints").iterdir())[:-1]:
        shutil.rmtree(older)


def main() -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    for name in ("finished", "cut", "answers"):
        shutil.rmtree(HERE / name, ignore_errors=True)
    options = [text for value in SMALL for text in ("--set", value)]
    raydense("train", "--local", *options, "--set", "name=finished", "--out", HERE / "finished")
    cut_run(HERE / "cut")
    for name in ("finished", "cut"):
        strip(HERE / name)
    answers = HERE / "answers"
    answers.mkdir()
    work = answers / "work"
    work.mkdir()
    shutil.copytree(HERE / "cut", work / "resumed")
    raydense("train", "--local", "--resume", work / "resumed")
    shutil.copy(work / "resumed" / "lora" / "pytorch_lora_weights.safetensors", answers / "resumed.safetensors")
    shutil.copy(work / "resumed" / "metrics.jsonl", answers / "resumed.metrics.jsonl")
    raydense("train", "--replay-from", HERE / "finished", "--set", "train.c=5", "--out", work / "offline")
    shutil.copy(work / "offline" / "lora" / "pytorch_lora_weights.safetensors", answers / "offline.safetensors")
    raydense("evaluate", "--local", HERE / "finished", "--out", work / "table")
    shutil.copy(work / "table" / "evaluation.json", answers / "evaluation.json")
    raydense("sample", "a red circle", "--lora", HERE / "finished", "--base", "--images", "1", "--out", work / "s.png")
    shutil.copy(work / "s.png", answers / "sample.png")
    (answers / "status.json").write_text(raydense("status", "finished", "--json"))
    for preset in preset_names():
        (answers / f"{preset}.yaml").write_text(load_config(None, preset).to_yaml())
    (answers / "compare.json").write_text(raydense("compare", "finished", "cut", "--json"))
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
