"""Judging runs whose inputs are not what they were."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from raydense.cli import app
from raydense.config import ConfigError
from raydense.evaluation.candidates import continue_sources, find_sources, shared_config

Runs = tuple[Path, Path]


def evaluate(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def read(out: Path) -> Any:
    return json.loads((out / "evaluation.json").read_text("utf-8"))


@pytest.fixture
def made_from_another(small_runs: Runs, tmp_path: Path) -> Callable[..., Path]:
    """A copy of a run, as if it had been made from another input."""

    def forge(setting: str, part: str = ".") -> Path:
        run = Path(shutil.copytree(small_runs[0], tmp_path / "forged"))
        recorded = json.loads((run / "inputs.json").read_text())
        assert part in recorded["inputs"][setting]["sha256"]
        recorded["inputs"][setting]["sha256"][part] = "0" * 64
        (run / "inputs.json").write_text(json.dumps(recorded))
        return run

    return forge


@pytest.mark.parametrize(
    ("setting", "part", "unread", "refused"),
    [
        ("policy.model", "unet", (), "policy.model="),
        ("policy.model", "tokenizer", ("prompts.", "scorer "), "policy.model="),
        ("prompts.train", ".", (), "prompts.train="),
        ("prompts.unseen", ".", ("scorer ",), "prompts.unseen="),
        ("prompts.train", ".", ("prompts.",), None),
        ("scorer clip: model", ".", (), "scorer clip: model="),
        ("scorer clip: model", ".", ("scorer ",), None),
    ],
)
def test_what_a_run_was_made_from_is_compared_as_far_as_it_is_read(
    made_from_another: Callable[..., Path], setting: str, part: str, unread: tuple[str, ...], refused: str | None
) -> None:
    sources = find_sources([str(made_from_another(setting, part))])
    config = shared_config(sources, None)
    if refused is None:
        assert continue_sources(config, sources, accept_changes=False, leave_out=unread).accepted == ()
    else:
        with pytest.raises(ConfigError, match=rf"forged was made from other files than lie there now: {refused}"):
            continue_sources(config, sources, accept_changes=False, leave_out=unread)
        (accepted,) = continue_sources(config, sources, accept_changes=True, leave_out=unread).accepted
        assert accepted.startswith(refused)


def test_runs_of_two_base_models_under_one_name_are_not_compared(
    small_runs: Runs, made_from_another: Callable[..., Path]
) -> None:
    sources = find_sources([str(small_runs[0]), str(made_from_another("policy.model", "vae"))])
    config = shared_config(sources, None)
    said = r"^forged is of another policy\.model=.* \(vae\) than first; compare models of one base, or go on by --acc"
    with pytest.raises(ConfigError, match=said):
        continue_sources(config, sources, accept_changes=False)
    assert len(continue_sources(config, sources, accept_changes=True).accepted) == 1


def test_a_change_that_was_accepted_is_in_the_table(made_from_another: Callable[..., Path], tmp_path: Path) -> None:
    run = made_from_another("policy.model", "unet")
    for command in (["evaluate", str(run), "--local"], ["sample", "a cat", "--lora", str(run)]):
        refused = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "refused.png")])
        assert refused.exit_code == 2
        assert "(unet); put them back, or go on with these by --accept-changes" in refused.stderr
        assert not (tmp_path / "refused.png").exists()
    result = evaluate(run, "--local", "--accept-changes", "--images", "1", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    (accepted,) = read(tmp_path / "out")["accepted_changes"]
    assert accepted.endswith("(unet)")


def test_a_relative_location_is_found_from_anywhere_and_shown_as_it_was_written(
    small_runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(small_runs[0], tmp_path / "run"))
    model = json.loads((run / "inputs.json").read_text())["inputs"]["policy.model"]["resolved"]
    for name in ("inputs.json", "config.yaml"):
        text = (run / name).read_text()
        written = text.replace(f'"written": "{model}"', '"written": "model"').replace(f"model: {model}", "model: model")
        (run / name).write_text(written)
    monkeypatch.chdir(tmp_path)
    result = evaluate(run, "--local", "--images", "1", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert read(tmp_path / "out")["base_model"] == "model"
