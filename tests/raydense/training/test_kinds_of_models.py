"""Whole runs of each kind of model through the command line, on small random pipelines in the real formats.

The slow ones show of other kinds what `sd3` shows; what is their own is in `families/test_chains.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file
from small_families import write_flux, write_sd3, write_sdxl
from typer.testing import CliRunner

from raydense.cli import app
from raydense.config import load_run_config
from raydense.planning.dry_run import check_and_plan

WRITERS: dict[str, Callable[..., Any]] = {"sdxl": write_sdxl, "sd3": write_sd3, "flux": write_flux}
PREFIX = {"sdxl": "unet.", "sd3": "transformer.", "flux": "transformer."}
CHAIN = {
    "sdxl": {"dynamics": "ddim", "exclude_last": 0},
    "sd3": {"dynamics": "cps", "exclude_last": 2},
    "flux": {"dynamics": "cps", "exclude_last": 1},
}
LORA = "lora/pytorch_lora_weights.safetensors"
UNUSED = {"transformer.transformer_blocks.1.attn.add_q_proj.lora_B.weight"}  # SD3's last block gives pictures alone
Train = Callable[..., Path]


@pytest.fixture(scope="module", params=["sd3", *(pytest.param(k, marks=pytest.mark.slow) for k in ("sdxl", "flux"))])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def train(
    kind: str, small_values: dict[str, Any], make_once: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Train:
    model = make_once(f"kind-{kind}", WRITERS[kind])
    tokens = {} if kind == "sdxl" else {"t5_tokens": 12}
    values = {**small_values, "policy": {**small_values["policy"], "model": str(model), **tokens}}
    values["sampler"] = {**small_values["sampler"], "latent_size": 8}
    values["steps"] = {"count": 5, "draws": 2}
    values["train"] = {"batch_groups": 4, "lr": 1e-4, "clip": 1.0}
    if kind == "sd3":  # what a learner knows of δ is part of what it continues from
        values["train"] |= {"clip": "auto", "clip_share": 0.2}
        values["steps"]["balance"] = "sensitivity"
    root = tmp_path_factory.mktemp(kind)
    (root / "config.yaml").write_text(yaml.safe_dump(values))

    def run(name: str, *arguments: str, settings: Sequence[str] = (), resume: bool = False) -> Path:
        start = ["--resume", str(root / name)] if resume else [str(root / "config.yaml"), "--out", str(root / name)]
        changes = [word for setting in settings for word in ("--set", setting)]
        ended = CliRunner().invoke(app, ["train", *start, *arguments, *changes])
        assert ended.exit_code == 0, ended.output
        return root / name

    return run


@pytest.fixture(scope="module")
def finished(train: Train) -> Path:
    return train("finished", "--local")


def rows(run: Path, kind: str) -> list[dict[str, Any]]:
    return [
        row for line in (run / "metrics.jsonl").read_text().splitlines() if (row := json.loads(line))["kind"] == kind
    ]


def test_it_learns_by_its_own_chain(finished: Path, kind: str) -> None:
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert {key: config["steps"][key] for key in CHAIN[kind]} == CHAIN[kind]
    steps = rows(finished, "step")
    assert len(steps) == 6
    drawn = 5 - CHAIN[kind]["exclude_last"]
    assert not np.sum([row["step_draws"] for row in steps], axis=0)[drawn:].any()
    first, *others = steps
    assert first["log_ratio/abs_max"] == 0  # equal weights: the same bits
    assert all(row["log_ratio/abs_max"] > 0 for row in others[1:3])
    assert all(row["grad_norm"] > 0 and np.isfinite(row["loss"]) for row in steps)
    assert [row["replay/groups"] for row in rows(finished, "stage")] == [5, 5]


def test_its_lora_has_its_pipelines_names_and_is_no_zero(finished: Path, kind: str) -> None:
    tensors = load_file(finished / LORA)
    assert tensors
    assert all(name.startswith(PREFIX[kind]) for name in tensors)
    still = {name for name, array in tensors.items() if not array.any()}
    assert still <= UNUSED
    assert any(".add_q_proj." in name for name in tensors) == (kind != "sdxl")


def test_a_run_that_was_cut_continues_to_the_same_bytes(train: Train, finished: Path, kind: str) -> None:
    train("cut", "--local", settings=["stage.count=1"])
    cut = train("cut", "--local", settings=["stage.count=2"], resume=True)
    assert (cut / LORA).read_bytes() == (finished / LORA).read_bytes()
    assert rows(cut, "step") == rows(finished, "step")
    if kind == "sd3":
        assert any(value is not None for row in rows(cut, "step") for value in row["clip"])
        assert any(any(row["clipped"]) for row in rows(cut, "step"))


def test_it_is_judged_and_drawn_from_its_file(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "picture.png"
    ended = CliRunner().invoke(
        app, ["sample", "a cat", "--lora", str(finished), "--base", "--images", "1", "--trajectory", "--out", str(out)]
    )
    assert ended.exit_code == 0, ended.output
    assert out.stat().st_size > 0
    ended = CliRunner().invoke(app, ["export", str(finished), "--to", str(tmp_path / "card")])
    assert ended.exit_code == 0, ended.output


def test_the_dry_run_knows_its_bytes(finished: Path) -> None:
    plan = check_and_plan(load_run_config(finished / "config.yaml"), 1.0)
    tensors = load_file(finished / LORA)
    assert plan.lora_parameters == sum(array.size for array in tensors.values())
    assert plan.group_bytes * 5 == rows(finished, "stage")[0]["replay/bytes"]


@pytest.mark.ray
@pytest.mark.slow
def test_on_ray_it_gives_the_same_bytes(train: Train, finished: Path, ray_cluster: None) -> None:
    """plain: `test_where_it_runs_changes_no_byte`, of Stable Diffusion."""
    assert (train("ray") / LORA).read_bytes() == (finished / LORA).read_bytes()
