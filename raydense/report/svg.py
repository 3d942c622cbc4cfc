"""Matplotlib figures as SVG for a page: its colours are the page's variables, so that light and dark are one file."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas

# Colours that stand for the page's variables; they differ from all that a figure could draw by itself.
THEME = {
    "#010201": "--ink",
    "#010202": "--muted",
    "#010203": "--rule",
    "#010204": "--card",
    **{f"#0103{index:02x}": f"--s{index}" for index in range(1, 9)},
}
INK, MUTED, RULE, CARD = list(THEME)[:4]
SERIES = tuple(list(THEME)[4:])
PAD, LEAST = 0.012, 0.3  # shares of a figure: around all of it, and of the axes themselves
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",  # to measure by; matplotlib brings it, and the page has its own
    "font.size": 10.5,
    "axes.labelsize": 10.5,
    "axes.edgecolor": RULE,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelcolor": MUTED,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-4, 5),
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 10,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.6,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "text.color": INK,
    "text.parse_math": False,  # a name with two $ is no formula
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
}


@dataclass(frozen=True)
class Figure:
    """One figure of the page."""

    key: str
    title: str
    caption: str
    alternative: str  # what it shows, in words
    svg: Markup


def draw(key: str, title: str, caption: str, alternative: str, paint: Callable[[Any], None]) -> Figure:
    """Lets `paint` draw on axes, and takes the result as SVG that scales with the page."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": key}):
        canvas = Canvas(figsize=(4.6, 2.8))
        FigureCanvasSVG(canvas)  # by which text is measured, too
        axes = canvas.subplots()
        axes.locator_params(axis="y", nbins=5)  # enough, and every tick takes its time
        paint(axes)
        _fit(canvas, axes)
        file = io.StringIO()
        canvas.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return Figure(key, title, caption, alternative, _inline(file.getvalue(), key, alternative))


def _fit(canvas: Canvas, axes: Any) -> None:
    """Moves the ends of the axes so that what stands around them just fits; a legend that never could is cut off.

    matplotlib's own layouts measure everything four times, which is most of the time that a page takes.
    """
    around, own = axes.get_tightbbox().transformed(canvas.transFigure.inverted()), axes.get_position()
    left, right = own.x0 - around.x0 + PAD, 1 - PAD - (around.x1 - own.x1)
    bottom, top = own.y0 - around.y0 + PAD, 1 - PAD - (around.y1 - own.y1)
    axes.set_position((left, bottom, max(right - left, LEAST), max(top - bottom, LEAST)))


def _inline(text: str, key: str, alternative: str) -> Markup:
    """The svg element alone: no size of its own, no id that another figure has, the page's colours."""
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text[text.index("<svg") :], flags=re.DOTALL)
    used = set(re.findall(r'(?:xlink:href="|url\()#([^")]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda m: f' id="{key}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'(xlink:href="|url\()#', rf"\g<1>#{key}-", body)
    body = re.sub("|".join(THEME), lambda m: f"var({THEME[m[0]]})", body)
    head, rest = body.split(">", 1)
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)
    return Markup(f'{head} role="img" aria-label="{escape(alternative)}">{rest}')
