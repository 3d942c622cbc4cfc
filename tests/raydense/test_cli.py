"""The command line in this process; where the input is bad: exit code 2, one plain line, and nothing changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from raydense.cli import app


@pytest.fixture
def config(small_values: dict[str, Any], tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(small_values))
    return file


def train(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["train", "--local", *map(str, arguments)])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.cilp=1", "raydense: train.cilp is not a setting; allowed here: "),
        ("train.cilp=1", "(did you mean clip?)"),
        ("seed", "raydense: --set 'seed': expected key=value, such as --set seed=1"),
        ("train.lr=0", "raydense: train.lr=0: input should be greater than 0"),
        ("prompts.train=absent.txt", "absent.txt: cannot be read (No such file"),
        ("policy.model=/absent", "policy.model=/absent is not a directory; give an existing one"),
        ("reward.scorer.model=/absent", "scorer clip: model=/absent is not a directory"),
        ("steps.count=1000", "steps.count=1000 does not fit the scheduler's 1000 timesteps"),
        ("policy.lora_targets=[to_qq]", "policy.lora_targets"),
    ],
)
def test_a_setting_that_cannot_run_is_explained(config: Path, tmp_path: Path, override: str, said: str) -> None:
    result = train(config, "--set", override, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert said in result.stderr
    assert "Traceback" not in result.output
    assert result.stderr.count("\n") == 1


def test_a_mistake_in_the_settings_leaves_no_directory(config: Path, tmp_path: Path) -> None:
    for override in ("train.cilp=1", "seed", "prompts.train=absent.txt"):
        assert train(config, "--set", override, "--out", tmp_path / "run").exit_code == 2
        assert not (tmp_path / "run").exists()


def test_a_directory_that_holds_something_is_refused_and_unchanged(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    before = out.stat().st_mtime_ns
    result = train(config, "--out", out)
    assert result.exit_code == 2
    assert f"--out={out} is not empty and is never overwritten; give a new directory" in result.stderr
    assert [p.name for p in out.iterdir()] == ["precious.txt"]
    assert (out / "precious.txt").read_text() == "mine"
    assert out.stat().st_mtime_ns == before


def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    result = train(tmp_path / "absent.yaml")
    assert result.exit_code == 2
    assert f"{tmp_path / 'absent.yaml'}: cannot be read (No such file or directory)" in result.stderr


def test_a_file_and_a_preset_exclude_each_other(config: Path) -> None:
    result = train(config, "--preset", "tiny")
    assert result.exit_code == 2
    assert "not both" in result.stderr


def test_debug_shows_where_it_happened(config: Path) -> None:
    result = train(config, "--set", "train.lr=0", "--debug")
    assert type(result.exception).__name__ == "ConfigError"


def test_base_and_tuned_model_are_judged_with_the_same_seeds(config: Path, tmp_path: Path) -> None:
    # steps that change the noise prediction in its last bits: whatever gain there is beyond comes from the seeds
    result = train(config, "--set", "train.lr=1e-6", "--set", "stage.count=1", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))
    for row in summary["reward"].values():
        assert abs(row["gain"]["mean"]) < 0.01 * row["before"]["se"]
        assert row["gain"]["se"] < 0.01 * row["before"]["se"]
        assert f"{row['gain']['mean']:+.4f} ± {row['gain']['se_by_prompt']:.4f}" in result.stdout
    assert "mean score, before and after (± standard error, clustered by prompt)" in result.stdout


def test_a_run_whose_training_has_no_effect_is_stopped(config: Path, tmp_path: Path) -> None:
    result = train(config, "--set", "train.lr=1e-30", "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert "weights version 3 predict the same noise as the base model: training has had no effect" in result.stderr
    assert "look at train.lr" in result.stderr


def test_a_package_that_took_a_neighbours_name_is_named(tmp_path: Path) -> None:
    (tmp_path / "actors").mkdir()
    (tmp_path / "actors" / "__init__.py").write_text("")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [Path(sys.executable).with_name("raydense"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert f"package 'actors' is {tmp_path / 'actors'}, not" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_shell_completes_commands_and_options() -> None:
    def completed(words: str) -> list[str]:
        position = str(len(words.split()) - 1)
        environment = {**os.environ, "_RAYDENSE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": position}
        command = Path(sys.executable).with_name("raydense")
        return subprocess.run([command], capture_output=True, text=True, env=environment).stdout.split()

    assert completed("raydense tr") == ["train"]
    assert completed("raydense train --pre") == ["--preset", "--preferences"]
