"""`raydense export`: a LoRA with its card, and an example that diffusers runs as it stands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import Result
from PIL import Image
from safetensors.numpy import save_file
from typer.testing import CliRunner

from raydense.cli import app
from raydense.config import Config, load_config
from raydense.diffusion.lora import KEY
from raydense.diffusion.schedulers import settle_chain
from raydense.evaluation.example import example_code
from raydense.evaluation.export import model_card
from raydense.records.run_dir import RunDirectory

LORA = "pytorch_lora_weights.safetensors"
Runs = tuple[Path, Path]


def export(run: Path, to: Path) -> Result:
    return CliRunner().invoke(app, ["export", str(run), "--to", str(to)])


@pytest.fixture(scope="module")
def exported(small_runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("exported") / "to"
    result = export(small_runs[0], to)
    assert result.exit_code == 0, result.output
    return to


def test_everything_that_is_given_away(exported: Path, small_runs: Runs) -> None:
    names = {"README.md", LORA, "before-after.png", "config.yaml", "example.py"}
    assert {path.name for path in exported.iterdir()} == names
    assert (exported / LORA).read_bytes() == (small_runs[0] / "lora" / LORA).read_bytes()


def run_example(code: str) -> np.ndarray:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(compile(code, "example.py", "exec"), {})
    with Image.open("example.png") as picture:
        return np.asarray(picture).astype(int)


def test_the_example_runs_as_it_stands_and_the_lora_changes_its_picture(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (exported / "example.py").read_text("utf-8")
    lines = code.splitlines(keepends=True)
    assert len(lines) == 6
    monkeypatch.chdir(exported)
    tuned = run_example(code)
    base = run_example("".join(line for line in lines if "load_lora_weights" not in line))
    (exported / "example.png").unlink()
    assert tuned.shape == base.shape == (16, 16, 3)
    assert np.abs(tuned - base).max() > 0


def test_the_card_says_what_it_is_and_what_it_gained(exported: Path, small_runs: Runs) -> None:
    card = (exported / "README.md").read_text("utf-8")
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "diffusers"
    assert "lora" in yaml.safe_load(front)["tags"]
    values = yaml.safe_load((small_runs[0] / "config.yaml").read_text())
    for said in (
        values["policy"]["model"],
        values["prompts"]["train"],
        "rank 2",
        "R = 4, K = 3",
        "| clip (trained on) |",
    ):
        assert said in body
    assert (exported / "example.py").read_text() in body
    gain = json.loads((small_runs[0] / "summary.json").read_text())["reward"]["unseen"]["gain"]["mean"]
    assert f"{gain:+.4f} [" in body
    assert "## Licence" in body
    assert "![The same prompts and seeds before and after](before-after.png)" in body
    assert "{" not in body.replace("{kind", "")


@pytest.mark.parametrize("preset", ["tiny", "single-prompt", "multi-prompt"])
def test_the_card_of_every_preset(preset: str) -> None:
    config = load_config(preset=preset)
    card = model_card(config, None, example_code(config, "a cat"), has_picture=False)
    front = yaml.safe_load(card.split("---\n", 2)[1])
    assert "has not judged its result" in card
    assert "unfinished" in card
    if preset == "tiny":
        assert "Apache License 2.0; so is this LoRA" in card
        assert "base_model" not in front
    else:
        assert front["base_model"] == config.policy.model
        assert f"This LoRA is a derivative of `{config.policy.model}`" in card
        assert f"revision='{config.policy.revision}'" in card


def test_a_mixture_names_its_parts(small_config: Callable[..., Config]) -> None:
    bright = {"kind": "callable", "name": "bright", "target": "my_scores:bright"}
    parts = [{"weight": 1.0, "scorer": {"kind": "hpsv2"}}, {"weight": 0.5, "scorer": bright}]
    config = small_config(reward={"scorer": {"kind": "mixture", "name": "both", "components": parts}})
    card = model_card(config, None, "", has_picture=False)
    expected = "both: 1 x hpsv2 (hpsv2, version `v2.0`) + 0.5 x bright (callable, target `my_scores:bright`)"
    assert f"| reward | {expected} |" in card


def test_nothing_is_overwritten_and_what_is_no_run_is_said(exported: Path, small_runs: Runs, tmp_path: Path) -> None:
    for run, to, said in (
        (small_runs[0], exported, "is not empty and is never overwritten"),
        (tmp_path, tmp_path / "to", "holds no config.yaml"),
    ):
        result = export(run, to)
        assert result.exit_code == 2
        assert said in result.stderr
        assert len(result.stderr.splitlines()) == 1


# -- the example draws as the run did ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheduler", "spacing"),
    [
        ({}, None),
        ({"timestep_spacing": "trailing"}, None),
        ({"timestep_spacing": "linspace"}, None),
        ({"steps_offset": 0, "set_alpha_to_one": True}, "leading"),
        ({"steps_offset": 3}, None),  # StableDiffusionPipeline sets it to 1
        ({"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True}, "trailing"),
        ({"_class_name": "LCMScheduler", "prediction_type": "v_prediction"}, "leading"),
    ],
)
def test_the_examples_scheduler_takes_the_runs_steps(
    small_config: Callable[..., Config],
    pipeline_dir: Path,
    tmp_path: Path,
    scheduler: dict[str, Any],
    spacing: str | None,
) -> None:
    shutil.copytree(pipeline_dir, tmp_path / "model")
    file = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **scheduler}))
    config = small_config(policy={"model": str(tmp_path / "model")}, steps={"count": 4, "spacing": spacing})
    code, run = example_code(config, "a cat"), RunDirectory(tmp_path)
    run.write_scheduler(json.loads(file.read_text()), config.steps)
    assert example_code(config, "a cat", run.read_scheduler()) == code
    lines = code.splitlines()
    names: dict[str, Any] = {}
    exec("\n".join(line for line in lines[:5] if "load_lora" not in line), names)
    theirs, ours = names["pipeline"].scheduler, settle_chain(json.loads(file.read_text()), 4, spacing)
    theirs.set_timesteps(4)
    assert theirs.timesteps.tolist() == ours.timesteps.tolist()
    assert theirs.alphas_cumprod.double()[theirs.timesteps].tolist() == ours.alpha.tolist()
    assert {key: theirs.config[key] for key in ours.arguments} == ours.arguments


def test_the_example_draws_in_the_runs_size(exported: Path, small_runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(small_runs[0] / "config.yaml", overrides=["sampler.latent_size=[12, 8]"])
    monkeypatch.chdir(exported)
    picture = run_example(example_code(config, "a cat"))
    (exported / "example.png").unlink()
    assert picture.shape == (24, 16, 3)


@pytest.mark.parametrize(
    ("length", "expected"),
    [(12, []), (10, []), (None, ["pipeline.tokenizer.model_max_length = 12"]),
     (77, ["pipeline.tokenizer.model_max_length = 12"])],
)  # fmt: skip
def test_the_example_sets_a_prompts_length_where_the_tokenizer_does_not(
    small_config: Callable[..., Config], pipeline_dir: Path, tmp_path: Path, length: int | None, expected: list[str]
) -> None:
    shutil.copytree(pipeline_dir, tmp_path / "model")
    file = tmp_path / "model" / "tokenizer" / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_max_length": length}))
    code = example_code(small_config(policy={"model": str(tmp_path / "model")}), "a cat")
    assert [line for line in code.splitlines() if "tokenizer" in line] == expected


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "clip_sample=False, thresholding=False)"),
        (["steps.spacing=trailing"], "timestep_spacing='trailing', steps_offset=1, set_alpha_to_one=False)"),
    ],
)
def test_a_pipeline_that_is_not_here_is_converted_where_the_example_runs(overrides: list[str], expected: str) -> None:
    config = load_config(preset="single-prompt", overrides=[*overrides, "policy.model=/absent"])
    line = example_code(config, "a cat").splitlines()[4]
    assert line.startswith("pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=")
    assert line.endswith(expected)


def test_a_run_says_its_scheduler_where_its_pipeline_is_gone(small_runs: Runs) -> None:
    config, scheduler = load_config(small_runs[0] / "config.yaml"), RunDirectory(small_runs[0]).read_scheduler()
    assert scheduler == {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "steps_offset": 1,
        "set_alpha_to_one": False,
        "clip_sample": False,
    }
    elsewhere = config.model_copy(update={"policy": config.policy.model_copy(update={"model": "/absent"})})
    lines = [example_code(each, "a cat", scheduler).splitlines()[4] for each in (config, elsewhere)]
    assert lines[0] == lines[1] == example_code(config, "a cat").splitlines()[4]


def test_a_damaged_scheduler_is_named(small_runs: Runs, tmp_path: Path) -> None:
    shutil.copytree(small_runs[0], tmp_path / "run")
    (tmp_path / "run" / "scheduler.json").write_text('{"beta_start": 0.0')
    result = export(tmp_path / "run", tmp_path / "to")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert f"{tmp_path}/run/scheduler.json ends early" in result.stderr
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("metadata", [None, {KEY: "[]"}, {KEY: "no JSON"}, {KEY: '{"unet.r": 2}'}])
def test_a_lora_that_no_run_wrote_is_said(small_runs: Runs, tmp_path: Path, metadata: dict[str, str] | None) -> None:
    run = tmp_path / "run"
    (run / "lora").mkdir(parents=True)
    shutil.copyfile(small_runs[0] / "config.yaml", run / "config.yaml")
    save_file({"a": np.zeros(2, np.float32)}, run / "lora" / LORA, metadata=metadata)
    result = export(run, tmp_path / "to")
    assert result.exit_code == 2
    assert f"{LORA} does not say what it was trained on; it is not the file that a run of" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "to").exists()
