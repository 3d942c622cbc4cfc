"""What every command finds of a pipeline before it starts: what does not fit, and what is taken otherwise."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_families import write_sd3
from small_models import write_pipeline
from typer.testing import CliRunner

from raydense.checks.doctor import examine
from raydense.cli import app
from raydense.config import Config
from raydense.evaluation.candidates import Source, chain_notes
from raydense.pipelines.pipeline_files import read_pipeline
from raydense.planning.preflight import as_found, check_inputs

Spoil = Callable[..., Path]


@pytest.fixture
def spoiled(pipeline_dir: Path, tmp_path: Path) -> Spoil:
    """A copy of the small pipeline with other values in a file: spoiled("unet/config.json", in_channels=9)."""

    def spoil(name: str, **values: Any) -> Path:
        shutil.copytree(pipeline_dir, tmp_path / "model")
        file = tmp_path / "model" / name
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
        return tmp_path / "model"

    return spoil


@pytest.mark.parametrize(
    "command",
    [
        ["train", "{config}", "--local", "--out", "{tmp}/run"],
        ["train", "{config}", "--dry-run"],
        ["sample", "a cat", "--lora", "{run}", "--set", "policy.model={model}", "--out", "{tmp}/s.png"],
        ["evaluate", "{run}", "--local", "--set", "policy.model={model}", "--out", "{tmp}/table"],
    ],
    ids=["train", "dry run", "sample", "evaluate"],
)
def test_every_command_refuses_a_pipeline_that_does_not_fit(
    command: list[str], spoiled: Spoil, small_values: dict[str, Any], small_runs: tuple[Path, Path], tmp_path: Path
) -> None:
    model = spoiled("unet/config.json", in_channels=9)
    values = {**small_values, "policy": {**small_values["policy"], "model": str(model)}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    names = {"config": tmp_path / "config.yaml", "tmp": tmp_path, "run": small_runs[0], "model": model}
    result = CliRunner().invoke(app, [word.format(**names) for word in command])
    assert result.exit_code == 2, result.output
    assert len(result.stderr.splitlines()) == 1
    assert f"policy.model={model}: unet/config.json: in_channels=9, as for inpainting, but the VAE's" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "model"]


def test_doctor_says_it_where_it_checks_the_inputs(
    spoiled: Spoil, small_config: Callable[..., Config], tmp_path: Path
) -> None:
    config = small_config(policy={"model": str(spoiled("vae/config.json", latent_channels=16))})
    *_, last = examine(config, tmp_path, 1.0)
    assert (last.name, last.ok) == ("model, scorer, prompts", False)
    assert "in_channels=4, but the VAE's latent_channels=16" in last.detail


def test_what_is_replaced_of_a_pipelines_own_is_among_the_notes(
    spoiled: Spoil, small_config: Callable[..., Config]
) -> None:
    model = str(spoiled("scheduler/scheduler_config.json", timestep_spacing="linspace"))
    inputs = check_inputs(small_config(policy={"model": model}))
    (note,) = inputs.notes
    assert "timestep_spacing=linspace cannot be had from DDIM with noise at every step" in note
    assert check_inputs(small_config(policy={"model": model}, steps={"spacing": "leading"})).notes == ()


DDIM, CPS, ODE = "4 steps of ddim, η 1", "4 steps of cps, η 1", "28 steps of ode, η 0, spacing null"
AS_OURS = f"{CPS}, spacing null", ODE
OTHERS: list[tuple[Any, dict[str, Any], tuple[str, str]]] = [
    (write_pipeline, {"steps": {"spacing": "trailing"}}, (f"{DDIM}, spacing trailing",) * 2),
    (write_pipeline, {"steps": {"window": (1, 3)}}, (f"{DDIM}, window [1, 3], spacing null",) * 2),
    (write_pipeline, {"evaluate": {"steps": 9}}, (f"{DDIM}, spacing null", "9 steps of ddim, η 1, spacing null")),
    (write_sd3, {"steps": {"dynamics": "flow-sde"}}, ("4 steps of flow-sde, η 1, spacing null", ODE)),
    (write_sd3, {"steps": {"window": (1, 3)}}, (f"{CPS}, window [1, 3], spacing null", ODE)),
    (write_sd3, {"evaluate": {"dynamics": "cps"}}, (AS_OURS[0], "28 steps of cps, η 1, spacing null")),
]


@pytest.mark.parametrize(("write", "change", "theirs"), OTHERS)
def test_models_of_another_chain_are_told_apart(
    write: Any,
    change: dict[str, Any],
    theirs: tuple[str, str],
    make_once: Callable[..., Path],
    small_config: Callable[..., Config],
) -> None:
    policy = {"model": str(make_once("pipeline" if write is write_pipeline else "kind-sd3", write))}
    ours, other = small_config(policy=policy), small_config(policy=policy, **change)
    pipeline = read_pipeline(ours.policy.model, None, fetch=False)
    sources = [Source("same", "same", as_found(ours, pipeline)), Source("run", "run", other), Source("file", "f", None)]
    here = AS_OURS[1] if write is write_sd3 else f"{DDIM}, spacing null"
    assert chain_notes(ours, pipeline, sources) == [
        f"run was trained with {theirs[0]}, and judged with {theirs[1]}, guidance 3; here all are drawn with {here}, "
        "guidance 3"
    ]


@pytest.mark.parametrize(
    ("dtype", "clip", "told"),
    [
        ("bfloat16", 1e-4, True), ("bfloat16", 1e-2, False), ("float32", 1e-4, False),
        ("float16", 1e-4, True), ("float16", 5e-4, False),
    ],
)  # fmt: skip
def test_a_clip_within_the_rounding_of_log_ratios_is_told(
    small_config: Callable[..., Config], dtype: str, clip: float, told: bool
) -> None:
    notes = check_inputs(small_config(learner={"dtype": dtype}, train={"clip": clip})).notes
    assert [note.partition(" is below three times the error that ")[0] for note in notes] == [
        "train.clip=0.0001"
    ] * told
