"""A run with judges as they are: a reward that prefers nothing, monitors that fail, write, print and leave."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import Result
from safetensors.numpy import load_file
from typer.testing import CliRunner

from raydense.api import Run
from raydense.cli import app


def nothing(images: np.ndarray, prompts: Sequence[str]) -> list[float]:
    return [0.0] * len(images)


def bright(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    return images.mean(axis=(1, 2, 3))


def vandal(images: np.ndarray, prompts: list[str]) -> list[float]:
    print("not on stdout")
    images[:] = 0
    prompts.clear()
    return [0.0] * len(images)


def picky(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    if "a cat" in prompts:
        raise ValueError("'a cat' is no scene")
    return bright(images, prompts)


def leaver(images: np.ndarray, prompts: Sequence[str]) -> None:
    raise SystemExit(3)


def changing(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    torch.set_default_dtype(torch.float64)
    return bright(images, prompts)


def judge(name: str, function: str = "") -> dict[str, str]:
    return {"kind": "callable", "name": name, "target": f"{__name__}:{function or name}"}


def train(values: dict[str, Any], out: Path, reward: dict[str, Any]) -> Result:
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump({**values, "reward": reward}))
    return CliRunner().invoke(app, ["train", "--local", "--log-format", "json", str(file), "--out", str(out)])


@pytest.fixture(scope="module")
def finished(small_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    monitors = [judge("before", "bright"), judge("vandal"), judge("picky"), judge("leaver"), judge("after", "bright")]
    out = tmp_path_factory.mktemp("judges") / "run"
    return out, train(small_values, out, {"scorer": judge("nothing"), "monitors": monitors})


def strictly(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def rows(run: Path, kind: str, file: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [row for row in map(strictly, (run / file).read_text("utf-8").splitlines()) if row["kind"] == kind]


def test_a_failing_monitor_is_said_once_and_costs_its_own_figures(finished: tuple[Path, Result]) -> None:
    run, result = finished
    assert result.exit_code == 0, result.output
    lines = [strictly(line) for line in result.stdout.splitlines()]  # nothing that a judge printed is among them
    events = rows(run, "monitor", "telemetry.jsonl")
    assert [row["judge"] for row in events] == ["picky", "leaver"]
    assert [line["text"] for line in lines if "monitor" in line.get("text", "")] == [
        f"the monitor {row['judge']} failed, and the run goes on without these scores: {row['failure']}"
        for row in events
    ]
    starts = ("scorer picky failed on the prompt 'a cat'", "scorer leaver failed on the prompt 'a cat'")
    ends = ("ValueError: 'a cat' is no scene", "SystemExit: 3")
    for row, start, end in zip(events, starts, ends, strict=True):
        assert row["failure"].startswith(start)
        assert row["failure"].endswith(end)
    for row in rows(run, "stage"):
        assert "reward/monitor/leaver" not in row
        assert row["reward/monitor/after"] == row["reward/monitor/before"] > 0


def test_a_reward_of_ties_alone_moves_nothing_and_is_said(finished: tuple[Path, Result]) -> None:
    run, result = finished
    said = "all trajectories of every group have the same reward; the gradient steps change nothing"
    assert [f"stage {stage} of 2: {said}" in result.stdout for stage in (1, 2)] == [True, True]
    assert [row["reward/tied_groups"] for row in rows(run, "stage")] == [1.0, 1.0]
    assert {(row["reward/ties"], row["grad_norm"]) for row in rows(run, "step")} == {(1.0, 0.0)}
    lora = load_file(run / "lora" / "pytorch_lora_weights.safetensors")
    assert not any(array.any() for name, array in lora.items() if "lora.up" in name or "lora_B" in name)


def test_what_it_did_not_score_is_null_and_no_figure(finished: tuple[Path, Result]) -> None:
    run, _ = finished
    scores = strictly((run / "scores.json").read_text("utf-8"))
    assert scores["train"]["a cat"]["picky"] == {"before": [None, None], "after": [None, None]}
    assert scores["unseen"]["a hen"]["picky"] == scores["unseen"]["a hen"]["after"]
    monitors = strictly((run / "summary.json").read_text("utf-8"))["monitors"]
    assert sorted(monitors) == ["after", "before", "picky", "vandal"]
    assert sorted(monitors["picky"]) == ["unseen"]
    strictly((run / "watch.json").read_text("utf-8"))
    table = Run.open(run).scores().to_pylist()
    assert {row["judge"] for row in table if np.isnan(row["before"])} == {"picky", "leaver"}


def test_whoever_reads_the_run_takes_it_as_it_is(finished: tuple[Path, Result]) -> None:
    run, _ = finished
    assert CliRunner().invoke(app, ["report", str(run)]).exit_code == 0
    page = (run / "report.html").read_text("utf-8")
    assert "<strong>The monitor picky failed.</strong>" in page
    assert "<strong>The monitor leaver failed.</strong>" in page
    assert "nan" not in re.sub(r"data:[^\"]*", "", page).lower().replace("finance", "")  # but in a picture's letters
    compared = CliRunner().invoke(app, ["compare", str(run), str(run), "--json"])
    assert compared.exit_code == 0, compared.output
    found = {(row["judge"], row["prompts"]): row["after"][0]["mean"] for row in strictly(compared.stdout)["scores"]}
    assert found["leaver", "unseen"] is None
    assert found["picky", "unseen"] == found["after", "unseen"]
    shown = CliRunner().invoke(app, ["compare", str(run), str(run)])
    assert "nan" not in shown.stdout
    evaluated = CliRunner().invoke(app, ["evaluate", "--local", str(run), "--images", "1", "--out", str(run / "table")])
    assert evaluated.exit_code == 0, evaluated.output
    assert "the monitor leaver failed, and base has no score where it did: scorer leaver failed" in evaluated.output
    results = strictly((run / "table" / "evaluation.json").read_text("utf-8"))["results"]
    means = {(r["scorer"], r["column"]): (r["pictures"], r["mean"]["mean"]) for r in results if r["model"] == "base"}
    assert means["leaver", "unseen"] == (0, None)
    assert means["picky", "unseen"] == means["after", "unseen"]


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (
            {"scorer": judge("leaver")},
            "scorer leaver failed on the prompt 'a cat' or one of the 1 prompts beside it: S",
        ),
        ({"scorer": judge("picky")}, "ValueError: 'a cat' is no scene (pictures [0, 1, 2, 3], run seed 3"),
        ({"scorer": judge("bright"), "monitors": [judge("changing")]}, "scorer changing changed torch's default dtype"),
    ],
    ids=["exits", "raises", "a monitor changes the process"],
)
def test_what_ends_a_run_is_named(small_values: dict[str, Any], tmp_path: Path, reward: Any, said: str) -> None:
    result = train(small_values, tmp_path / "run", reward)
    assert result.exit_code == 1
    assert said in result.stderr
    assert "tried 3 times" in result.stderr
    assert torch.get_default_dtype() == torch.float32
