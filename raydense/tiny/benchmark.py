"""Does it learn? Whole training runs over seeds and variants: `python -m raydense.tiny.benchmark --out DIR`.

Each run is `raydense train --local` with fixed seeds. The gain is paired (same prompts, same noise), pooled over the
seeds, with its standard error clustered by prompt, and set against the distance from the base model's mean score to
that of real renderings of the same captions.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import CLIPModel, CLIPProcessor

from raydense.tiny.renderings import render_bank
from raydense.tiny.train_scorer import cosine_scores

REAL_RENDERINGS = 16  # of each caption
REAL_SEED = 77
VARIANTS: dict[str, list[str]] = {
    "default": [],
    "default, last 2 steps left out": ["steps.exclude_last=2"],
    "gamma=1": ["steps.gamma=1"],
    "gamma=1, last 2 steps left out": ["steps.gamma=1", "steps.exclude_last=2"],
}
Scores = npt.NDArray[np.float64]


def run_one(out: Path, seed: int, overrides: Sequence[str]) -> dict[str, Any]:
    """Trains once, unless `out` is already finished; returns its scores."""
    if not (out / "summary.json").exists():
        settings = [part for override in (f"seed={seed}", *overrides) for part in ("--set", override)]
        command = [sys.executable, "-m", "raydense.cli", "train", "--local", "--out", str(out), *settings]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    scores: dict[str, Any] = json.loads((out / "scores.json").read_text("utf-8"))
    return scores


def real_scores(prompts: Sequence[str]) -> Scores:
    """Mean score of real renderings of each caption: float64 [P]."""
    folder = str(resources.files("raydense.tiny") / "weights" / "scorer")
    scorer = CLIPModel.from_pretrained(folder).float().eval()
    images = render_bank(prompts, REAL_RENDERINGS, REAL_SEED).images
    captions = [prompt for prompt in prompts for _ in range(REAL_RENDERINGS)]
    scores = cosine_scores(
        scorer, CLIPProcessor.from_pretrained(folder), images.reshape(-1, *images.shape[2:]), captions
    )
    by_prompt: Scores = scores.reshape(len(prompts), -1).mean(axis=1).astype(np.float64)
    return by_prompt


def tabulate(runs: Sequence[dict[str, Any]], prompt_set: str, scorer: str) -> dict[str, float]:
    """Pools runs over seeds. `before`, `after`, `gain`, its plain and clustered standard errors."""
    prompts = list(runs[0][prompt_set])

    def table(when: str) -> Scores:  # [P, seeds * m]
        return np.array([np.concatenate([run[prompt_set][p][scorer][when] for run in runs]) for p in prompts])

    before, after = table("before"), table("after")
    gain = after - before
    return {
        "before": float(before.mean()),
        "after": float(after.mean()),
        "gain": float(gain.mean()),
        "se": float(gain.std(ddof=1) / np.sqrt(gain.size)),
        "se_by_prompt": float(gain.mean(axis=1).std(ddof=1) / np.sqrt(len(prompts))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs; finished ones are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for every run")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    arguments = parser.parse_args()
    jobs = [(variant, seed) for variant in arguments.variants for seed in arguments.seeds]

    def run(job: tuple[str, int]) -> dict[str, Any]:
        variant, seed = job
        out = arguments.out / f"{variant.replace(', ', '-').replace(' ', '-')}-seed{seed}"
        return run_one(out, seed, [*arguments.set, *VARIANTS[variant]])

    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = dict(zip(jobs, pool.map(run, jobs), strict=True))
    print("| variant | prompts | judge | before | after | gain ± se (se by prompt) | share of the distance |")
    print("|---|---|---|---|---|---|---|")
    for variant in arguments.variants:
        runs = [results[variant, seed] for seed in arguments.seeds]
        for prompt_set in ("train", "unseen"):
            ceiling = float(real_scores(list(runs[0][prompt_set])).mean())
            for scorer in next(iter(runs[0][prompt_set].values())):
                row = tabulate(runs, prompt_set, scorer)
                best = 1.0 if scorer == "oracle" else ceiling
                share = row["gain"] / (best - row["before"])
                print(
                    f"| {variant} | {prompt_set} | {scorer} | {row['before']:.4f} | {row['after']:.4f} | "
                    f"{row['gain']:+.4f} ± {row['se']:.4f} ({row['se_by_prompt']:.4f}) | {share:.0%} of {best:.3f} |"
                )


if __name__ == "__main__":
    main()
