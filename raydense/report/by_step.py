"""The figures by denoising step: what the loss drew, what was clipped and why, and where its gradient lies."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from raydense.report.run_data import Row, RunData
from raydense.report.svg import INK, MUTED, SERIES, Figure, draw
from raydense.sections.run import StepsConfig

CLIPPED_WELL = (0.02, 0.10)  # of the log-ratios: where the clip is well chosen (METHOD §9)
Values = NDArray[Any]  # by denoising step, [T]


def by_step_figures(run: RunData) -> Iterator[Figure]:
    """Nothing of a loss on finished pictures; of a run of earlier code what it told."""
    if run.config.train.draws_steps:
        yield from (figure for make in FIGURES if (figure := make(run)))


def step_figure(run: RunData) -> Figure | None:
    """Which denoising steps the loss drew."""
    counts, counted = _step_counts(run)
    if not counted:
        return None
    expected = expected_shares(run.config.steps) * counts.sum()
    some = "" if counted == len(run.rows("step")) else f" Counted in {counted:,} evenly spaced gradient steps."
    drawn = run.config.steps.drawn
    some_left = len(drawn) < run.config.steps.count
    left_out = f", the steps {drawn[0]} to {drawn[-1]} alone" if some_left else ""
    return draw(
        "steps",
        "Denoising steps drawn",
        f"Draws of the loss by step index; 0 is the first, noisiest step. Dots: expected at γ = "
        f"{run.config.steps.gamma:g}{left_out}.{some}",
        f"Histogram of {counts.sum():,} step draws: step 0 {counts[0]:,} times, step {len(counts) - 1} "
        f"{counts[-1]:,} times, step {int(counts.argmax())} most often.",
        partial(_paint, bars=counts, dots=expected),
    )


def gradient_figure(run: RunData) -> Figure | None:
    """Each denoising step's share of the squared gradient at the network's output."""
    rows = _rows_with(run, "gradient")
    counts, squares = _drawn(rows), _squares(rows, "gradient")
    if not np.any(squares):
        return None
    equal = _ratio(squares, counts)
    shares, equal = squares / squares.sum(), equal / equal.sum()
    most, late = int(shares.argmax()), max(0, len(shares) - 2)
    return draw(
        "gradient-by-step",
        "Gradient by step",
        "Share of each denoising step in the sum of ‖∂ loss / ∂ output‖² over all draws, of the network's (guided) "
        f"output, before the norm is clipped{_some(run, rows)}. Dots: had all steps been drawn equally often.",
        f"Share of the squared gradient by denoising step: most at step {most}: {shares[most]:.1%}; the steps from "
        f"{late} on {shares[late:].sum():.1%}, drawn equally often {equal[late:].sum():.1%}.",
        partial(_paint, bars=shares, dots=np.where(counts > 0, equal, np.nan)),
    )


def spread_figure(run: RunData) -> Figure | None:
    """How wide each denoising step's log-ratios are before they are clipped, beside δ."""
    rows = _rows_with(run, "spread")
    counts = _drawn(rows)
    spread = np.sqrt(_ratio(_squares(rows, "spread"), counts))
    if not np.any(spread):
        return None
    clip = run.config.train.clip
    known = [row["clip"] for row in rows if "clip" in row]
    delta = np.array([np.nan if value is None else value for value in known[-1]]) if known else None
    width = "|π_θ / π_old − 1|" if run.config.train.objective == "policy_gradient" else "log-ratios"
    least, most = int(np.where(counts > 0, spread, np.inf).argmin()), int(spread.argmax())
    return draw(
        "spread-by-step",
        "Spread of log-ratios by step",
        f"Root mean square of each denoising step's {width} before clipping, over the whole run{_some(run, rows)}. "
        + ("Dashed: δ." if delta is None else "Dots: δ of the last gradient step."),
        f"Spread by denoising step: from {spread[least]:.3g} at step {least} to {spread[most]:.3g} at step {most}.",
        partial(_paint, bars=spread, dots=delta, dashed=clip if isinstance(clip, float) else None),
    )


def clip_figure(run: RunData) -> Figure | None:
    """Which share of a denoising step's log-ratios was clipped."""
    rows = _rows_with(run, "clipped")
    if not rows:
        return None
    drawn = run.config.train.tuple_size * _drawn(rows)
    clipped = np.array([row["clipped"] for row in rows]).sum(axis=0)
    shares = _ratio(clipped, drawn)
    most = int(shares.argmax())
    return draw(
        "clipped-by-step",
        "Clipped log-ratios by step",
        f"Share of each denoising step's log-ratios beyond δ ({run.config.train.shown_clip}), over the whole run. "
        "Band: 2 to 10 %.",
        f"Clipped share by denoising step: {clipped.sum() / drawn.sum():.1%} of all, most at step {most}: "
        f"{shares[most]:.1%}.",
        partial(_paint, bars=shares, band=CLIPPED_WELL),
    )


FIGURES = (step_figure, gradient_figure, spread_figure, clip_figure)


def expected_shares(steps: StepsConfig) -> Values:
    """P(t), which the draws follow (METHOD §4): float64 [T]."""
    weights, drawn = np.zeros(steps.count), np.array(steps.drawn)
    weights[drawn] = steps.gamma ** drawn.astype(np.float64)
    shares: Values = weights / weights.sum()
    return shares


def _step_counts(run: RunData) -> tuple[NDArray[np.int64], int]:
    """How often each denoising step was drawn: int64 [T], and in how many gradient steps this was counted."""
    rows = run.rows("step")
    known = [row["step_draws"] for row in rows if "step_draws" in row]
    if len(known) == len(rows):
        return np.sum(known, axis=0, dtype=np.int64), len(known)
    from raydense.report.step_draws import draw_counts  # with torch: earlier code did not count while it trained

    return draw_counts(run.config, run.steps_taken)


def _rows_with(run: RunData, name: str) -> list[Row]:
    """Of gradient steps that told it, and what they drew; a skipped one did not."""
    return [row for row in run.rows("step") if name in row and "step_draws" in row]


def _drawn(rows: list[Row]) -> Values:
    return np.asarray(np.sum([row["step_draws"] for row in rows], axis=0, dtype=np.float64))


def _squares(rows: list[Row], name: str) -> Values:
    """Sums over all draws, of which a row has the root mean square; 0 where there is none."""
    squares = [np.square([value or 0.0 for value in row[name]]) * row["step_draws"] for row in rows]
    return np.asarray(np.sum(squares, axis=0))


def _ratio(values: Values, counts: Values) -> Values:
    """0 where nothing was counted."""
    ratio: Values = np.divide(values, counts, out=np.zeros(np.shape(values)), where=counts > 0)
    return ratio


def _some(run: RunData, rows: list[Row]) -> str:
    """Of a run that earlier code began."""
    known = sum("loss" in row for row in run.rows("step"))
    return "" if len(rows) == known else f" (in {len(rows):,} of {known:,} gradient steps)"


def _paint(
    axes: Any,
    bars: Values,
    dots: Values | None = None,
    dashed: float | None = None,
    band: tuple[float, float] | None = None,
) -> None:
    if band is not None:
        axes.axhspan(*band, color=SERIES[2], alpha=0.14, linewidth=0)
    if dashed is not None:
        axes.axhline(dashed, color=MUTED, linewidth=1, dashes=(4, 3))
    axes.bar(range(len(bars)), bars, color=SERIES[0], alpha=0.75, width=0.85)
    if dots is not None:
        axes.plot(range(len(dots)), dots, ".", color=INK, markersize=5)
    axes.set_xlabel("denoising step t")
    axes.grid(visible=False, axis="x")
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
