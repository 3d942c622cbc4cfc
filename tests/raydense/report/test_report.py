"""The report of a run, finished or cut anywhere: what it holds, and that it needs nothing but itself."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from raydense.cli import app
from raydense.records.metrics import read_rows
from raydense.report.curves import limits
from raydense.report.page import number, render, write_report
from raydense.report.pictures import prompt_gains
from raydense.report.run_data import Curve, read_run
from raydense.report.svg import draw

FIGURES = {
    "figure-reward0", "figure-reward1", "figure-loss", "figure-pair_accuracy", "figure-grad_norm",
    "figure-log_ratio-clip_fraction", "figure-log_ratio-abs_mean", "figure-log_ratio-old_abs_mean", "figure-steps",
    "figure-clipped-by-step", "figure-gradient-by-step", "figure-spread-by-step",
    "figure-phases", "figure-throughput-images_per_s", "figure-throughput-steps_per_s", "figure-gains-train",
    "figure-gains-unseen", "figure-images-saturation", "figure-images-entropy", "figure-images-similarity",
}  # fmt: skip


class Page(HTMLParser):
    """Start tags with their attributes, and the text outside of style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        self.text += "" if self._inside == "style" else data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def keep_rows(file: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if wanted(json.loads(line))))


def test_a_finished_run_has_every_figure_and_each_has_a_text_alternative(finished: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(finished), "--out", str(tmp_path / "a" / "report.html")])
    assert result.exit_code == 0, result.output
    page = Page((tmp_path / "a" / "report.html").read_text("utf-8"))
    assert {figure["id"] for figure in page.all("figure")} == FIGURES
    assert len(page.all("svg")) == len(FIGURES)
    for drawing in page.all("svg"):
        assert drawing["role"] == "img"
        assert len(drawing["aria-label"] or "") > 30
    # 2 prompts: a strip of 3, 2 + 2 before and after; 2 sets of 2 judged prompts, before and after
    assert len(page.all("img")) == 2 * (3 + 4) + 2 * 2 * 2
    assert all(len(image["alt"] or "") > 10 for image in page.all("img"))
    for said in ("finished", "reddish, a monitor, never trained on", "gradient steps", "a cat", "discount γ"):
        assert said in page.text


def test_it_needs_no_network_and_no_script(finished: Path) -> None:
    text = render(read_run(finished))
    page = Page(text)
    assert not page.all("script")
    targets = [
        value or "" for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "href")
    ]
    assert {target[:5] for target in targets} <= {"data:", *(t[:5] for t in targets if t.startswith("#"))}
    assert not re.search(r"(?<!xmlns=\")(?<!xmlns:xlink=\")https?://", text)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_its_numbers_are_those_of_the_run(finished: Path) -> None:
    scores = json.loads((finished / "scores.json").read_text("utf-8"))
    gains = {found.name: found for found in prompt_gains(read_run(finished))}
    text = Page(render(read_run(finished))).text
    for name, by_prompt in scores.items():
        expected = {p: np.mean(s["clip"]["after"]) - np.mean(s["clip"]["before"]) for p, s in by_prompt.items()}
        assert {g.prompt: g.gain for g in gains[name].prompts} == pytest.approx(expected)
        assert [g.gain for g in gains[name].prompts] == sorted(expected.values(), reverse=True)
        assert gains[name].means["clip"].mean == pytest.approx(np.mean(list(expected.values())))
        assert number(float(np.mean(list(expected.values()))), "+") in text
    reward = next(row for row in read_rows(finished / "metrics.jsonl") if row["kind"] == "stage")
    low, high = reward["intervals"]["reward/mean"]
    assert f"{number(low)} to {number(high)}" in text
    losses = [row["loss"] for row in read_rows(finished / "metrics.jsonl") if row["kind"] == "step"]
    assert number(sum(losses[:3]) / 3) in text
    curve = read_run(finished).evaluations("clip")[1]
    assert (curve.name, curve.steps) == ("evaluate/unseen/clip", (0, 2, 4, 6))


def cut_before_anything(run: Path) -> None:
    for name in ("metrics.jsonl", "telemetry.jsonl", "scores-base.json"):
        (run / name).unlink()
    for name in ("checkpoints", "images", "tensorboard"):
        shutil.rmtree(run / name)


def cut_while_sampling(run: Path) -> None:
    keep_rows(run / "metrics.jsonl", lambda row: row["kind"] == "evaluation" and row["step"] == 0)
    keep_rows(run / "telemetry.jsonl", lambda row: row["step"] == 0 and row["kind"] in ("start", "unit"))
    for path in (run / "images").glob("stage-*"):
        path.unlink()


def cut_while_training(run: Path) -> None:
    keep_rows(run / "metrics.jsonl", lambda row: row["step"] <= 4)
    (run / "metrics.jsonl").open("a").write('{"kind": "st')
    (run / "images" / "stage-0002.png").write_bytes(b"\x89PNG torn")
    for path in (run / "images").glob("judged-*6.zip"):
        path.write_bytes(b"PK torn")


CUTS = {
    cut_before_anything: ("No stage has been collected yet", "No picture has been drawn yet", "No gradient step has"),
    cut_while_sampling: (
        "No stage has been accounted for yet",
        "No gradient step has",
        "The base model",
        "sampling; last written",
    ),
    cut_while_training: ("From the base model to the last stage", "Stage 2 of 2, training", "raydense train --resume"),
}


@pytest.mark.parametrize("cut", CUTS)
def test_a_run_that_was_cut_or_still_runs_has_a_report(cut: Callable[[Path], None], copy: Path) -> None:
    for name in ("summary.json", "scores.json"):
        (copy / name).unlink()
    cut(copy)
    page = Page(write_report(copy).read_text("utf-8"))
    assert "unfinished" in page.text
    assert "The tuned model is judged when the run ends" in page.text
    for said in CUTS[cut]:
        assert said in re.sub(r"\s+", " ", page.text)


def test_a_failure_and_a_suspicion_are_at_the_top(copy: Path) -> None:
    (copy / "failure.json").write_text('{"what": "3 gradient steps in a row had no finite loss"}')
    rows = list(read_rows(copy / "metrics.jsonl"))
    found = {"reward/hacking_suspected": 1, "reward/fallen": 1}
    suspected = [{**row, **found} if row["kind"] == "stage" else row for row in rows]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in suspected))
    text = Page(render(read_run(copy))).text
    assert (
        text.index("3 gradient steps in a row") < text.index("Reward hacking suspected") < text.index("gradient norm ≤")
    )
    assert text.count("in stage 1, 2") == 2
    assert text.index("Reward hacking suspected") < text.index("The reward fell") < text.index("gradient norm ≤")


def test_a_prompt_is_text_and_never_markup(copy: Path) -> None:
    scores = json.loads((copy / "scores.json").read_text("utf-8"))
    bad = "<script>alert('x')</script>\" onload=\"y"
    scores["train"] = {bad: next(iter(scores["train"].values())), **scores["train"]}
    (copy / "scores.json").write_text(json.dumps(scores))
    page = Page(render(read_run(copy)))
    assert not page.all("script")
    assert not [attributes for _, attributes in page.tags if "onload" in attributes]
    assert bad in page.text


def test_a_name_with_dollars_is_no_formula() -> None:
    figure = draw("key", "title", "caption", "alternative", lambda axes: axes.set_title("$a$ $b{ [red] :cat:"))
    assert "$a$ $b{ [red] :cat:" in figure.svg


@pytest.mark.parametrize(
    ("label", "legend", "values"),
    [
        ("seconds", "samples", [0.5, 1.0]),
        ("gradient steps\nof the run", "samples", [-123456.75, 1e9]),
        ("", "samples", [1e-7, 2e-7]),
        ("seconds", "wider than the figure " * 10, [0, 1]),
    ],
)
def test_what_stands_around_a_figures_axes_fits(label: str, legend: str, values: list[float]) -> None:
    def paint(axes: Any) -> None:
        axes.plot(values, label=legend)
        axes.set_ylabel(label)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1))
        drawn.append(axes)

    drawn: list[Any] = []
    draw("key", "title", "caption", "alternative", paint)
    around = drawn[0].get_tightbbox().transformed(drawn[0].figure.transFigure.inverted())
    left, low, right, high = around.extents
    assert (left, low, high) == pytest.approx((0, 0, 1), abs=0.025)
    if legend == "samples":
        assert right == pytest.approx(1, abs=0.025)
    else:
        assert drawn[0].get_position().width == pytest.approx(0.3)


def test_the_command_that_continues_is_one_for_a_shell(copy: Path) -> None:
    (copy / "summary.json").unlink()
    odd = copy.rename(copy.with_name("it's a <run>; #7"))
    assert shlex.join(["raydense", "train", "--resume", str(odd)]) in Page(render(read_run(odd))).text


def test_what_is_no_run_or_no_place_is_refused_in_one_line(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for arguments, said in (
        ([str(tmp_path)], "holds no config.yaml; give the directory of a"),
        ([str(finished), "--out", str(tmp_path / "file" / "report.html")], "cannot be written"),
        ([str(finished), "--out", str(tmp_path / "a.pdf")], "a.pdf: a report is HTML; give a name that ends in .html"),
    ):
        result = CliRunner().invoke(app, ["report", *arguments])
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert said in result.stderr


def test_an_interval_of_two_prompts_does_not_flatten_the_curve() -> None:
    """Student's interval of two values is 12.7 standard errors: the means must stay apart on the page all the same."""
    curves = [
        Curve("a", (0, 1), (0.5, 0.6), ((-9.0, 10.0), (-9.0, 10.0))),
        Curve("b", (0, 1), (0.55, 0.7), (None, None)),
    ]
    low, high = limits(curves)
    assert (low, high) == pytest.approx((-0.5 - 0.11, 1.7 + 0.11))
    narrow = [Curve("a", (0, 1), (0.5, 0.6), ((0.45, 0.55), (0.5, 0.65)))]
    assert limits(narrow) == pytest.approx((0.45 - 0.01, 0.65 + 0.01))
    assert limits([Curve("a", (0,), (0.0,), (None,))]) == pytest.approx((0.0, 0.0), abs=0.2)
