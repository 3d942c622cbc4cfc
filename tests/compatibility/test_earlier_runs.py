"""Run directories that earlier code wrote are still read, continued and judged, to the same numbers."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from typer.testing import CliRunner

from raydense.cli import app
from raydense.config import load_config, load_run_config

HERE = Path(__file__).resolve().parent
ANSWERS = HERE / "answers"
OTHER_PRESETS = {  # what has changed in them since
    "tiny": ("learner.micro_batch=8", "evaluate.prompts=27", "evaluate.images_per_prompt=12", "train.ema=null"),
    "single-prompt": ("sampler.unit_prompts=1", "learner.dtype=bfloat16", "learner.micro_batch=1"),
    "multi-prompt": ("sampler.unit_prompts=1", "learner.dtype=bfloat16", "learner.micro_batch=4"),
}
TOLERANCE = 1e-4  # between kinds of CPUs, which have moved numbers by 4e-5; on one kind they are the same


def raydense(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copies of the two runs, as `finished` and `cut` in the current directory."""
    for name in ("finished", "cut"):
        shutil.copytree(HERE / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def assert_same_tensors(found: Path, expected: Path) -> None:
    ours, theirs = load_file(found), load_file(expected)
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name], array, rtol=0, atol=TOLERANCE, err_msg=name)


def assert_close(found: Any, expected: Any, where: str = "") -> None:
    """Equal, with numbers to `TOLERANCE`; what later code adds to a mapping is no difference."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            assert key in found, f"{where}.{key}"
            assert_close(found[key], value, f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for index, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert_close(a, b, f"{where}[{index}]")
    elif isinstance(expected, float):
        assert math.isclose(found, expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE), f"{where}: {found} != {expected}"
    else:
        assert found == expected, where


def test_a_cut_run_is_continued_to_the_same_lora(runs: Path) -> None:
    said = raydense("train", "--local", "--resume", runs / "cut")
    assert "keeps no record of what it was made from; what lies there now is taken for it" in said
    assert "policy.model" in json.loads((runs / "cut/inputs.json").read_text("utf-8"))["inputs"]
    assert_same_tensors(runs / "cut/lora/pytorch_lora_weights.safetensors", ANSWERS / "resumed.safetensors")
    ours, theirs = (
        [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        for path in (runs / "cut/metrics.jsonl", ANSWERS / "resumed.metrics.jsonl")
    )
    assert_close(ours, theirs)


def test_stored_groups_are_learned_from(runs: Path) -> None:
    raydense("train", "--replay-from", runs / "finished", "--set", "train.c=5", "--out", runs / "offline")
    assert_same_tensors(runs / "offline/lora/pytorch_lora_weights.safetensors", ANSWERS / "offline.safetensors")


def test_a_finished_run_is_judged_and_drawn(runs: Path) -> None:
    raydense("evaluate", "--local", "finished", "--out", "table")
    expected = json.loads((ANSWERS / "evaluation.json").read_text("utf-8"))
    assert_close(json.loads((runs / "table/evaluation.json").read_text("utf-8")), expected)
    raydense("sample", "a red circle", "--lora", "finished", "--base", "--images", "1", "--out", "s.png")
    drawn, known = (np.asarray(Image.open(path)).astype(int) for path in (runs / "s.png", ANSWERS / "sample.png"))
    assert drawn.shape == known.shape
    assert np.abs(drawn - known).max() <= 1  # of 255, where rounding falls the other way


@pytest.mark.parametrize(("name", "arguments"), [("status", ["finished"]), ("compare", ["finished", "cut"])])
def test_what_is_read_of_runs(runs: Path, name: str, arguments: list[str]) -> None:
    expected = json.loads((ANSWERS / f"{name}.json").read_text("utf-8"))
    expected.pop("last_write_s", None)  # seconds ago
    assert_close(json.loads(raydense(name, *arguments, "--json")), expected)


def test_a_report_and_an_export_are_made(runs: Path) -> None:
    raydense("report", "finished")
    assert "finished" in (runs / "finished/report.html").read_text("utf-8")
    raydense("export", "finished", "--to", "exported")
    name = "pytorch_lora_weights.safetensors"
    assert (runs / "exported" / name).read_bytes() == (runs / "finished/lora" / name).read_bytes()


def test_the_exported_example_draws_with_the_embedded_model(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are of several precisions, as many a pipeline's are."""
    raydense("export", "finished", "--to", "exported")
    monkeypatch.chdir(runs / "exported")
    exec((runs / "exported/example.py").read_text("utf-8"), {})
    with Image.open("example.png") as picture:
        assert picture.size == (64, 64)
        assert len(set(picture.convert("RGB").getdata())) > 10


@pytest.mark.parametrize("name", ["tiny", "single-prompt", "multi-prompt"])  # that code had no others
def test_resolved_configurations_are_still_read(name: str) -> None:
    path = ANSWERS / f"{name}.yaml"
    assert path.is_file(), "make_runs.py was run before this preset was there"
    meant = ["sampler.exact=true", "steps.spacing=leading", "train.ties=random"]  # that code had no words for these
    meant += ["steps.dynamics=ddim", "steps.exclude_last=0", "policy.lora_targets=[to_q, to_k, to_v, to_out.0]"]
    meant += ["policy.compile=false", "learner.cache_references=true", *OTHER_PRESETS.get(name, ())]
    assert load_run_config(path) == load_config(None, name, meant)
