"""Measures the shipped weights: `python -m raydense.tiny.figures` prints the README's figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPModel, CLIPProcessor

from raydense.prompts.prompt_sets import read_prompts
from raydense.tiny.oracle import score
from raydense.tiny.renderings import render_bank
from raydense.tiny.scenes import render_batch, split_captions
from raydense.tiny.train_scorer import cosine_scores
from raydense.tiny.train_unet import sample_images
from raydense.tiny.train_vae import reconstruction_psnr

_WEIGHTS = Path(__file__).parent / "weights"
_SAMPLES = 16
_REAL_SEED = 77


def ranking_quality(rewards: npt.NDArray[np.float32], right: npt.NDArray[np.float32]) -> float:
    """Mean area under the ROC curve within prompts that have both right and wrong samples; both are [P, N]."""
    areas = [
        (reward[good == 1][:, None] > reward[good == 0][None, :]).mean()
        for reward, good in zip(rewards, right, strict=True)
        if 0 < good.sum() < len(good)
    ]
    return float(np.mean(areas))


def measure(pipeline: Any, scorer: Any, processor: Any, captions: Sequence[str]) -> str:
    """One line on 16 samples a caption against real renderings of the same captions."""
    prompts = [caption for caption in captions for _ in range(_SAMPLES)]
    samples = sample_images(pipeline, prompts, seed=11)
    right = score(samples, prompts)
    rewards = cosine_scores(scorer, processor, samples, prompts)
    real = cosine_scores(scorer, processor, render_batch(prompts, range(len(prompts))), prompts)
    area = ranking_quality(rewards.reshape(-1, _SAMPLES), right.reshape(-1, _SAMPLES))
    return (
        f"fully right {right.mean():.3f}, reward {rewards.mean():.3f} "
        f"(real renderings {real.mean():.3f}), within-prompt AUC {area:.3f}"
    )


def ceiling(scorer: Any, processor: Any, captions: Sequence[str]) -> float:
    """Mean score of 16 real renderings of each caption: what alignment could reach."""
    images = render_bank(captions, _SAMPLES, _REAL_SEED).images
    prompts = [caption for caption in captions for _ in range(_SAMPLES)]
    return float(cosine_scores(scorer, processor, images.reshape(-1, *images.shape[2:]), prompts).mean())


def main() -> None:
    """Prints one line for the autoencoder, one for each prompt set, and the ceilings of the alignment prompts."""
    torch.set_num_threads(1)
    pipeline = StableDiffusionPipeline.from_pretrained(
        _WEIGHTS / "pipeline", torch_dtype=torch.float32, safety_checker=None
    )
    scorer: Any = CLIPModel.from_pretrained(_WEIGHTS / "scorer", dtype=torch.float32)
    processor = CLIPProcessor.from_pretrained(_WEIGHTS / "scorer")
    train, unseen = split_captions()
    print(f"autoencoder: {reconstruction_psnr(pipeline.vae):.1f} dB")
    print("train: " + measure(pipeline, scorer.eval(), processor, train[::9]))
    print("unseen: " + measure(pipeline, scorer.eval(), processor, unseen))
    for name in ("align", "unseen"):
        captions = read_prompts(f"pkg://raydense.tiny/prompts/{name}.txt")
        print(f"real renderings of {name}.txt: reward {ceiling(scorer, processor, captions):.3f}")


if __name__ == "__main__":
    main()
