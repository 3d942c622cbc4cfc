"""A run that continues is made of what it began with; what has changed is refused, or accepted and all of it new."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from raydense.cli import app
from raydense.config import load_run_config

LORA = "lora/pytorch_lora_weights.safetensors"


def train(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["train", "--local", *map(str, arguments)])


def json_of(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@contextmanager
def inside(directory: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def began(small_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a finished run, `run`, of relative paths to what lies beside it."""
    home = tmp_path_factory.mktemp("began")
    shutil.copytree(small_values["policy"]["model"], home / "model")
    (home / "train.txt").write_text("a cat\na dog\na red fox\n")
    (home / "unseen.txt").write_text("a hen\na cow\n")
    values = {
        **small_values,
        "policy": {**small_values["policy"], "model": "model"},
        "prompts": {"train": "train.txt", "unseen": "unseen.txt"},
    }
    (home / "config.yaml").write_text(yaml.safe_dump(values))
    with inside(home):
        assert train("config.yaml", "--out", "run").exit_code == 0
    return home


@pytest.fixture
def home(began: Path, tmp_path: Path) -> Path:
    """`began`, cut before its second stage and moved away: nothing lies where it was resolved to."""
    home = Path(shutil.copytree(began, tmp_path / "home"))
    for name in ("checkpoints/stage-0002", "images"):
        shutil.rmtree(home / "run" / name)
    (home / "run" / "images").mkdir()
    (home / "run" / "summary.json").unlink()
    text = (home / "run" / "inputs.json").read_text().replace(str(began), str(home))
    (home / "run" / "inputs.json").write_text(text)
    return home


def test_a_run_keeps_what_it_was_made_from(began: Path) -> None:
    recorded = json_of(began / "run" / "inputs.json")
    assert recorded["inputs"]["policy.model"]["written"] == "model"
    assert recorded["inputs"]["policy.model"]["resolved"] == f"{began}/model"
    assert set(recorded["inputs"]) == {"prompts.train", "prompts.unseen", "policy.model", "scorer clip: model"}
    assert recorded["accepted"] == []
    lines = (began / "run" / "prompts" / "train.jsonl").read_text().splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == ["a cat", "a dog", "a red fox"]
    assert load_run_config(began / "run" / "config.yaml").prompts.train == "train.txt"


def test_it_continues_from_anywhere_and_without_its_prompt_files_to_the_same_bytes(
    home: Path, began: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "train.txt").unlink()
    monkeypatch.chdir(tmp_path)
    result = train("--resume", home / "run")
    assert result.exit_code == 0, result.output
    for name in (LORA, "metrics.jsonl", "scores.json", "config.yaml", "inputs.json"):
        ours, whole = ((root / "run" / name).read_bytes() for root in (home, began))
        assert ours.replace(str(home).encode(), str(began).encode()) == whole, name


REFUSED: dict[str, tuple[str, tuple[str, ...], str]] = {  # what is overwritten, further arguments, what is said
    "prompts": ("train.txt", (), "prompts.train={home}/train.txt; put them back"),
    "the base model": ("model/unet/config.json", (), "policy.model={home}/model (unet); put them back"),
    "an override": ("", ("--set", "train.lr=0.5"), "train.lr: 0.01 -> 0.5"),
    "a buffer that the first unit finds too small": ("", ("--set", "replay.max_bytes=9"), "replay.max_bytes=9 is"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_leaves_the_run_as_it_was(case: str, home: Path) -> None:
    path, arguments, said = REFUSED[case]
    if path:
        (home / path).write_text((home / path).read_text() + "\n{}")
    before = files(home / "run")
    result = train("--resume", home / "run", *arguments)
    assert result.exit_code == 2
    assert said.format(home=home) in result.stderr
    assert len(result.stderr.splitlines()) == 1
    after = files(home / "run")
    if "max_bytes" in said:  # the process had begun
        before, after = ({name: content[name] for name in ("config.yaml", LORA)} for content in (before, after))
    assert after == before


def test_accepted_prompts_are_trained_on_and_judged_before_and_after(home: Path) -> None:
    (home / "train.txt").write_text("a pig\na cow and a cat\n")
    (home / "unseen.txt").write_text("a hen\na worm\n")
    result = train("--resume", home / "run", "--accept-changes")
    assert result.exit_code == 0, result.output
    scores = json_of(home / "run" / "scores.json")
    assert {name: list(by_prompt) for name, by_prompt in scores.items()} == {
        "train": ["a pig", "a cow and a cat"],
        "unseen": ["a hen", "a worm"],
    }
    base = json_of(home / "run" / "scores-base.json")
    for name, by_prompt in scores.items():
        assert base[name]["clip"] == [row["clip"]["before"] for row in by_prompt.values()]
    (accepted,) = json_of(home / "run" / "inputs.json")["accepted"]
    assert accepted["changes"] == [f"prompts.train={home}/train.txt", f"prompts.unseen={home}/unseen.txt"]

    fresh = home / "fresh"  # what a run that begins with these prompts finds of the base model
    with inside(home):
        assert train("config.yaml", "--out", fresh, "--set", "stage.count=1", "--set", "stage.steps=1").exit_code == 0
    assert json_of(fresh / "scores-base.json") == base
    again = train("--resume", home / "run")
    assert again.exit_code == 0, again.output


def test_accepting_is_for_runs_that_continue(home: Path) -> None:
    result = train(home / "config.yaml", "--accept-changes")
    assert result.exit_code == 2
    assert "--accept-changes is for a run that continues; add --resume or --replay-from" in result.stderr


def test_stored_groups_are_learned_from_on_the_same_base_alone(home: Path, tmp_path: Path) -> None:
    (home / "train.txt").write_text("a pig\n")  # the stored groups have their own
    (home / "model" / "vae" / "config.json").write_text((home / "model" / "vae" / "config.json").read_text() + " ")
    arguments = ("--replay-from", home / "run", "--out", tmp_path / "out", "--set", "stage.count=1")
    refused = train(*arguments)
    assert refused.exit_code == 2
    assert f"policy.model={home}/model (vae); put them back, or go on with these by --accept-changes" in refused.stderr
    assert not (tmp_path / "out").exists()
