"""`raydense train --local` on every kind of pipeline, from every kind of start, and with judges that fail."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import Result
from huggingface_hub import constants
from safetensors.numpy import load_file
from typer.testing import CliRunner

from raydense.cli import app
from raydense.config import load_config
from raydense.evaluation.example import example_code
from raydense.records.grids import read_grid
from raydense.records.segments import read_segment

LORA = "lora/pytorch_lora_weights.safetensors"
RESTORED = "segment"
CALLS: dict[str, Any] = {"count": 0, "out": ()}


def sometimes_out(images: np.ndarray, prompts: Sequence[str]) -> Any:
    """A judge that stops answering, as a service may."""
    CALLS["count"] += 1
    if CALLS["count"] in CALLS["out"]:
        raise TimeoutError("the judge's service\nis out")
    return images.mean(axis=(1, 2, 3))


def not_a_number(images: np.ndarray, prompts: Sequence[str]) -> Any:
    return np.where(np.array(prompts) == "a dog", np.nan, images.mean(axis=(1, 2, 3)))


@pytest.fixture
def train(small_values: dict[str, Any], tmp_path: Path) -> Callable[..., Result]:
    """Runs the small configuration with changed sections: train(policy={…}); the run is in tmp_path / "run"."""

    def run(*arguments: str, **sections: Any) -> Result:
        values = dict(small_values)
        for key, section in sections.items():
            values[key] = {**values[key], **section} if key in values else section
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
        command = arguments or (str(tmp_path / "config.yaml"), "--out", str(tmp_path / "run"))
        return CliRunner().invoke(app, ["train", "--local", *command])

    return run


def rows(run: Path, kind: str, file: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [row for row in map(json.loads, (run / file).read_text("utf-8").splitlines()) if row["kind"] == kind]


# -- pipelines ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prediction_type", "like_2"),
    [
        pytest.param("v_prediction", True, id="v_prediction-2.x"),
        # each of these repeats what others show; what all other tests train is epsilon-1.x
        pytest.param("epsilon", True, id="epsilon-2.x", marks=pytest.mark.slow),
        pytest.param("v_prediction", False, id="v_prediction-1.x", marks=pytest.mark.slow),
        pytest.param("sample", True, id="sample-2.x", marks=pytest.mark.slow),
        pytest.param("sample", False, id="sample-1.x", marks=pytest.mark.slow),
        pytest.param("epsilon", False, id="epsilon-1.x", marks=pytest.mark.slow),
    ],
)
def test_every_prediction_type_trains_end_to_end(
    train: Callable[..., Result],
    make_pipeline: Callable[..., Path],
    tmp_path: Path,
    prediction_type: str,
    like_2: bool,
) -> None:
    model = make_pipeline(tmp_path / "model", prediction_type, like_2=like_2)
    result = train(policy={"model": str(model)}, stage={"count": 1})
    assert result.exit_code == 0, result.output
    steps = rows(tmp_path / "run", "step")
    assert steps[0]["log_ratio/abs_max"] == 0.0
    assert steps[-1]["log_ratio/abs_mean"] > 0
    assert all(np.isfinite(row["loss"]) for row in steps)
    assert steps[0]["grad_norm"] > 0
    assert steps[0]["log_ratio/old_abs_mean"] < 1e-5  # one kernel samples and re-scores


def test_sixteen_bit_sampling_and_autocast_learning_train_end_to_end(
    train: Callable[..., Result], tmp_path: Path
) -> None:
    result = train(
        policy={"channels_last": True},
        sampler={"dtype": "bfloat16", "decode_batch": 3},
        learner={"dtype": "bfloat16", "gradient_checkpointing": True},
        stage={"count": 1},
    )
    assert result.exit_code == 0, result.output
    steps = rows(tmp_path / "run", "step")
    assert steps[0]["log_ratio/abs_max"] == 0.0
    assert steps[0]["log_ratio/old_abs_mean"] < 1e-5  # equal precision, equal arithmetic


def test_portraits_of_a_pipeline_that_leaves_open_what_it_may(
    train: Callable[..., Result], make_pipeline: Callable[..., Path], tmp_path: Path
) -> None:
    """Another scheduler's file, no size, no prompt length: the learner steps where the sampler did."""
    model = make_pipeline(tmp_path / "model")
    for name, values in {
        "scheduler/scheduler_config.json": {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"},
        "unet/config.json": {"sample_size": None},
        "tokenizer/tokenizer_config.json": {"model_max_length": None},
    }.items():
        (model / name).write_text(json.dumps({**json.loads((model / name).read_text()), **values}))
    result = train(
        policy={"model": str(model)}, sampler={"latent_size": [12, 8]}, replay={"segments": True}, stage={"count": 1}
    )
    assert result.exit_code == 0, result.output
    steps = rows(tmp_path / "run", "step")
    assert steps[0]["log_ratio/abs_max"] == 0.0
    assert steps[0]["log_ratio/old_abs_mean"] < 1e-5
    assert steps[-1]["log_ratio/abs_mean"] > 0
    assert read_grid(tmp_path / "run" / "images" / "before-after.png").images.shape[2:] == (24, 16, 3)
    segment = next((tmp_path / "run" / "segments").rglob("*.arrow"))
    assert read_segment(segment)[1][0].latents.shape == (3, 5, 4, 12, 8)


def test_a_pipeline_with_16_bit_files_alone_is_trained_from_them_and_the_run_keeps_which(
    train: Callable[..., Result], pipeline_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(pipeline_dir, tmp_path / "model")
    for file in (tmp_path / "model").rglob("*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    result = train(policy={"model": str(tmp_path / "model")}, stage={"count": 1, "groups": 5, "steps": 1})
    assert result.exit_code == 0, result.output
    said = "policy.model has only fp16 weights for unet, vae, text_encoder, so these are loaded"
    assert said in " ".join(result.output.split())
    config = load_config(tmp_path / "run" / "config.yaml")
    assert config.policy.variant == "fp16"
    assert ", variant='fp16', torch_dtype=torch.float32, safety_checker=None)" in example_code(config, "a cat")


# -- policy.init_lora -----------------------------------------------------------------------------------------


def test_a_run_starts_from_a_lora_and_its_reference_stays_the_base(
    train: Callable[..., Result], small_runs: tuple[Path, Path], tmp_path: Path
) -> None:
    start = small_runs[0]
    result = train(policy={"init_lora": str(start / "lora")}, train={"lr": 1e-12}, stage={"count": 1})
    assert result.exit_code == 0, result.output
    first, second = load_file(start / LORA), load_file(tmp_path / "run" / LORA)
    assert first.keys() == second.keys()
    assert max(float(np.abs(first[name] - second[name]).max()) for name in first) < 1e-9
    (step, *_) = rows(tmp_path / "run", "step")
    assert step["log_ratio/abs_mean"] > 0  # against the base, from which the start differs
    assert step["log_ratio/old_abs_mean"] < 1e-5  # the samplers started from the same LoRA


def test_a_start_that_does_not_fit_is_bad_input(
    train: Callable[..., Result], small_runs: tuple[Path, Path], tmp_path: Path
) -> None:
    result = train(policy={"init_lora": str(small_runs[0] / "lora"), "lora_rank": 4})
    assert result.exit_code == 2
    assert "has rank 2, but policy.lora_rank=4; make them agree" in result.stderr
    assert not (tmp_path / "run").exists()


# -- no hub ---------------------------------------------------------------------------------------------------


def test_an_unreachable_hub_is_one_line_within_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # as HF_ENDPOINT and HF_HUB_CACHE do at its import
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    wall, processor = time.monotonic(), time.process_time()
    result = CliRunner().invoke(app, ["train", "--local", "--set", "policy.model=owner/model"])
    wall, processor = time.monotonic() - wall, time.process_time() - processor
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    for said in ("policy.model=owner/model", "tried http://127.0.0.1:9", "is no directory here, and cannot be had"):
        assert said in line
    assert wall - processor < 20 + wall / 2  # the client's retries alone would wait 23 s a file
    assert list(tmp_path.iterdir()) in ([], [tmp_path / "cache"])


# -- judges that fail -----------------------------------------------------------------------------------------


def test_a_judge_that_is_out_changes_nothing_and_if_it_stays_out_what_was_collected_is_used_again(
    train: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = {"kind": "callable", "name": "service", "target": f"{__name__}:sometimes_out"}
    whole = {"reward": {"scorer": scorer}, "replay": {"segments": True}, "stage": {"count": 1}}
    assert train(**whole).exit_code == 0
    expected = (tmp_path / "run" / LORA).read_bytes()
    shutil.rmtree(tmp_path / "run")

    monkeypatch.setitem(CALLS, "count", 0)
    monkeypatch.setitem(CALLS, "out", {3, *range(6, 100)})  # for a moment; and after the base's judging and one unit
    result = train(**whole)
    assert result.exit_code == 1
    assert "scorer service failed on the prompt 'a " in result.stderr
    assert re.search(
        r"TimeoutError: the judge's service is out \(unit 1 of stage 0, .*; tried 3 times\)", result.stderr
    )
    assert len(list((tmp_path / "run" / "segments").rglob("*.*"))) >= 1

    monkeypatch.setitem(CALLS, "count", 0)
    monkeypatch.setitem(CALLS, "out", {2, 4})
    assert train("--resume", str(tmp_path / "run")).exit_code == 0
    units = rows(tmp_path / "run", "unit", "telemetry.jsonl")
    assert RESTORED in {row["sampler"] for row in units}
    assert rows(tmp_path / "run", "ledger", "telemetry.jsonl")[-1]["fleet/retried"] == 2
    assert (tmp_path / "run" / LORA).read_bytes() == expected


def test_a_score_that_is_no_number_is_never_used(train: Callable[..., Result], tmp_path: Path) -> None:
    scorer = {"kind": "callable", "name": "broken", "target": f"{__name__}:not_a_number"}
    result = train(reward={"scorer": scorer})
    assert result.exit_code == 1
    assert re.search(r"scorer broken gave nan for the prompt 'a dog' \(pictures .*; tried 3 times\)", result.stderr)


# -- mixtures -------------------------------------------------------------------------------------------------


def test_a_mixture_trains_and_each_component_is_in_the_metrics_and_the_summary(
    train: Callable[..., Result], tmp_path: Path, scorer_dir: Path
) -> None:
    parts = [
        {"weight": 1.0, "scorer": {"kind": "clip", "name": "clip", "model": str(scorer_dir)}},
        {"weight": 0.01, "scorer": {"kind": "callable", "name": "bright", "target": f"{__name__}:sometimes_out"}},
    ]
    result = train(reward={"scorer": {"kind": "mixture", "name": "both", "components": parts}}, stage={"count": 1})
    assert result.exit_code == 0, result.output
    for row in rows(tmp_path / "run", "stage"):
        assert row["reward/mean"] == pytest.approx(
            row["reward/monitor/clip"] + 0.01 * row["reward/monitor/bright"], rel=1e-5
        )
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["scorer"], sorted(summary["monitors"])) == ("both", ["bright", "clip"])


# -- prompts --------------------------------------------------------------------------------------------------


def test_a_prompt_that_the_model_reads_in_part_is_said_at_the_start(
    train: Callable[..., Result], tmp_path: Path
) -> None:
    (tmp_path / "long.txt").write_text("a cat\na red fox on a hill\na cat\n")
    result = train(prompts={"train": str(tmp_path / "long.txt")}, stage={"count": 1, "groups": 5, "steps": 1})
    assert result.exit_code == 0, result.output
    assert "reads 10 tokens of 'a red fox on a hill'; cut off: " in " ".join(result.output.split())
    assert "1 duplicate dropped: line 3" in " ".join(result.output.split())
