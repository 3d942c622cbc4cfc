"""The figures of a run's curves: rewards and monitors, and learning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from raydense.report.by_step import CLIPPED_WELL
from raydense.report.run_data import Curve, RunData
from raydense.report.svg import MUTED, RULE, SERIES, Figure, draw

MOST_POINTS = 400  # of a curve; a longer one is drawn as the means of as many stretches
LEARNING = {
    "loss": ("Loss", ""),
    "pair_accuracy": ("Pair accuracy", "Share of a batch's pairs that the policy orders as the reward does."),
    "grad_norm": ("Gradient norm", "Before clipping; dashed: train.max_grad_norm."),
    "log_ratio/clip_fraction": ("Clipped log-ratios", "Share beyond the clip; the band is 2–10 %."),
    "log_ratio/abs_mean": ("Distance from the base model", "Mean |log π_θ − log π_ref| a step; dashed: the clip δ."),
    "log_ratio/old_abs_mean": ("Distance from the sampling policy", "Mean |log π_θ − log π_old| a step."),
    "kl": ("Divergence from the base model", "Mean KL(π_θ ‖ π_I) a step and latent element."),
    "implicit_accuracy": (
        "Implicit accuracy",
        "Share of a batch's draws whose winner's error fell more than the loser's.",
    ),
}
PLACKETT_LUCE = "Plackett–Luce loss of the batch; ln 2 = 0.693 is that of a policy without a preference (pairs)."
LOSSES = {  # by objective
    "dense_preference": PLACKETT_LUCE,
    "trajectory_preference": PLACKETT_LUCE,
    "policy_gradient": "Clipped surrogate of the batch, and the weighed divergence; 0 is that of the sampling policy.",
    "diffusion_dpo": "Diffusion-DPO's loss of the batch; ln 2 = 0.693 is that of the base model.",
}
WATCH = {
    "images/saturation": ("Saturation", "Mean colour saturation of the sampled pictures."),
    "images/entropy": ("Entropy", "Mean entropy of the sampled pictures."),
    "images/similarity": ("Similarity", "How alike the pictures of a prompt are."),
}


def reward_figures(run: RunData) -> Iterator[Figure]:
    """A figure a judge: what the stages sampled, and the fixed prompts that were evaluated on the way."""
    for index, judge in enumerate(run.judges):
        sampled = run.curve("stage", f"reward/monitor/{judge}" if index else "reward/mean")
        curves = [("samples", sampled), *((c.name.split("/")[1], c) for c in run.evaluations(judge))]
        curves = [(label, curve) for label, curve in curves if curve.steps]
        if not curves:
            continue
        role = "a monitor, never trained on" if index else "trained on"
        yield draw(
            f"reward{index}",
            f"{judge}, {role}",
            "Mean and 95 % interval (cut off where it is very wide). Samples: the pictures of each stage, over its "
            "trajectory groups. Others: fixed prompts and seeds, over prompts.",
            f"Mean score of {judge} over gradient steps. " + " ".join(_change(*pair) for pair in curves),
            partial(_paint_rewards, curves=curves, stage_steps=run.config.stage.steps),
        )


def learning_figures(run: RunData) -> Iterator[Figure]:
    train = run.config.train
    limits = {"grad_norm": train.max_grad_norm}
    if isinstance(train.clip, float):
        limits["log_ratio/abs_mean"] = train.clip
    for name, (title, caption) in LEARNING.items():
        curve = run.curve("step", name)
        if not curve.steps:
            continue
        yield draw(
            name.replace("/", "-"),
            title,
            f"{caption or LOSSES[train.objective]} {_smoothing(curve)}",
            f"{title} over {curve.steps[-1]:,} gradient steps. {_change(name, curve)}",
            partial(_paint_learning, curve=curve, run=run, limit=limits.get(name)),
        )


def watch_figures(run: RunData) -> Iterator[Figure]:
    """Statistics of the sampled pictures, where a run has them: a reward that is hacked often shows there first."""
    for name, (title, caption) in WATCH.items():
        curve = run.curve("stage", name)
        if curve.steps:
            yield draw(
                name.replace("/", "-"),
                title,
                caption,
                f"{title} by stage. {_change(name, curve)}",
                partial(_paint_rewards, curves=[("samples", curve)], stage_steps=run.config.stage.steps),
            )


# -- how they are drawn ---------------------------------------------------------------------------------------


def _paint_rewards(axes: Any, curves: Sequence[tuple[str, Curve]], stage_steps: int) -> None:
    end = max(stage_steps, *(curve.steps[-1] for _, curve in curves))
    for (label, curve), colour in zip(curves, SERIES, strict=False):
        axes.plot(curve.steps, curve.values, color=colour, marker="o", markersize=3.5, label=label)
        known = [(s, *ends) for s, ends in zip(curve.steps, curve.ends, strict=True) if ends]
        if len(known) > 1:
            axes.fill_between(*zip(*known, strict=True), color=colour, alpha=0.16, linewidth=0)
        elif known:
            axes.vlines(*zip(*known, strict=True), color=colour, linewidth=1.2)
    axes.set_xlim(-0.04 * end, 1.04 * end)
    axes.set_ylim(*limits([curve for _, curve in curves]))
    axes.set_xlabel("gradient steps")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if len(curves) > 1:
        axes.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, handlelength=1.4)


def limits(curves: Sequence[Curve]) -> tuple[float, float]:
    """What to show of the values: their intervals too, unless these are so wide that nothing else could be seen."""
    means = [value for curve in curves for value in curve.values]
    ends = [end for curve in curves for pair in curve.ends if pair for end in pair]
    low, high = min(means), max(means)
    spread = (high - low) or abs(high) or 1.0
    bottom, top = max(min([low, *ends]), low - 5 * spread), min(max([high, *ends]), high + 5 * spread)
    margin = 0.05 * (top - bottom) or 0.1
    return bottom - margin, top + margin


def _paint_learning(axes: Any, curve: Curve, run: RunData, limit: float | None) -> None:
    steps, values = _stretches(curve)
    if limit is not None:
        axes.axhline(limit, color=MUTED, linewidth=1, dashes=(4, 3))
    if curve.name == "log_ratio/clip_fraction":
        axes.axhspan(*CLIPPED_WELL, color=SERIES[2], alpha=0.14, linewidth=0)
    for boundary in range(run.config.stage.steps, curve.steps[-1], run.config.stage.steps):
        axes.axvline(boundary + 0.5, color=RULE, linewidth=1.2)
    axes.plot(steps, values, color=SERIES[0], linewidth=0.8, alpha=0.45)
    axes.plot(steps, _smooth(values), color=SERIES[0])
    axes.set_xlabel("gradient steps; upright lines: stages")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _stretches(curve: Curve) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps and values, averaged over stretches where there are too many to draw."""
    count = min(len(curve.steps), MOST_POINTS)
    parts = (np.array_split(np.asarray(v, dtype=np.float64), count) for v in (curve.steps, curve.values))
    steps, values = (np.array([part.mean() for part in split]) for split in parts)
    return steps, values


def _window(points: int) -> int:
    return max(1, points // 20) | 1


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centred moving average; at the ends over what there is."""
    kernel = np.ones(_window(len(values)))
    weights = np.convolve(np.ones(len(values)), kernel, mode="same")
    smoothed: NDArray[np.float64] = np.convolve(values, kernel, mode="same") / weights
    return smoothed


def _smoothing(curve: Curve) -> str:
    points = min(len(curve.steps), MOST_POINTS)
    window = round(_window(points) * len(curve.steps) / points)
    return f"Bold: mean over {window} steps." if window > 1 else ""


def _change(label: str, curve: Curve) -> str:
    first, last = curve.values[0], curve.values[-1]
    return f"{label}: {first:.4g} at step {curve.steps[0]}, {last:.4g} at step {curve.steps[-1]}."
