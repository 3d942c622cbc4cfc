"""`import raydense`: light, and a run from Python is the run from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import raydense
from raydense.api import _config

LORA = "lora/pytorch_lora_weights.safetensors"


def test_importing_it_loads_nothing_heavy_until_it_is_used() -> None:
    code = (
        "import sys, raydense; assert not {'torch', 'ray', 'pydantic', 'pyarrow'} & set(sys.modules); "
        "raydense.load_config; assert 'torch' not in sys.modules; print(*dir(raydense))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["Config", "ConfigError", "Run", "load_config", "train"]


def test_there_is_nothing_else() -> None:
    with pytest.raises(AttributeError, match="module 'raydense' has no attribute 'trian'"):
        _ = raydense.trian  # type: ignore[attr-defined]


def forms(values: dict[str, Any], directory: Path) -> dict[str, Any]:
    file = directory / "config.yaml"
    file.write_text(json.dumps(values))  # which is YAML
    return {"values": values, "Config": raydense.Config.model_validate(values), "file": file}


def test_every_form_of_a_configuration_is_the_same_one(small_values: dict[str, Any], tmp_path: Path) -> None:
    read = [_config(form, ["name=again"]) for form in forms(small_values, tmp_path).values()]
    assert read[0].name == "again"
    assert read[0].model_copy(update={"name": "small"}) == raydense.Config.model_validate(small_values)
    assert read == read[:1] * 3


@pytest.mark.parametrize(
    "form",
    ["values", pytest.param("Config", marks=pytest.mark.slow), pytest.param("file", marks=pytest.mark.slow)],
)
def test_training_from_python_gives_the_bytes_of_the_command_line(
    small_values: dict[str, Any], small_runs: tuple[Path, Path], tmp_path: Path, form: str
) -> None:
    """Slow: what `test_every_form_of_a_configuration_is_the_same_one` shows without a run."""
    run = raydense.train(
        forms(small_values, tmp_path)[form], tmp_path / "run", overrides=["name=again"], local=True, show=False
    )
    assert run.finished
    assert run.config.name == "again"
    assert small_values["name"] == "small"  # the caller's own values stay as they were
    assert run.lora == tmp_path / "run" / LORA
    assert run.lora.read_bytes() == (small_runs[0] / LORA).read_bytes()


def test_a_preset_is_named_by_its_name_and_bad_input_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(raydense.ConfigError, match=r"train\.lr=0: input should be greater than 0"):
        raydense.train("tiny", tmp_path / "run", overrides=["train.lr=0"], local=True)
    with pytest.raises(raydense.ConfigError, match="the configuration: preset=tinny is unknown"):
        raydense.train({"preset": "tinny", "seed": 7}, tmp_path / "run", local=True)
    with pytest.raises(
        raydense.ConfigError, match=r"the configuration lacks .*; add them, or put `preset: tiny` at its"
    ):
        raydense.train({"seed": 7}, tmp_path / "run", local=True)
    with pytest.raises(raydense.ConfigError, match="is a URI"):
        raydense.train("tiny", f"file://{tmp_path}/run", local=True)
    assert not (tmp_path / "run").exists()


def test_metrics_are_a_table_with_a_column_a_name(small_runs: tuple[Path, Path]) -> None:
    run = raydense.Run.open(small_runs[0])
    stages, steps = run.metrics("stage"), run.metrics("step")
    assert isinstance(stages, pa.Table)
    rows = [json.loads(line) for line in (small_runs[0] / "metrics.jsonl").read_text().splitlines()]
    assert stages["reward/mean"].to_pylist() == [r["reward/mean"] for r in rows if r["kind"] == "stage"]
    assert steps["loss"].to_pylist() == [r["loss"] for r in rows if r["kind"] == "step"]
    assert steps["step"].type == pa.int64()
    every = run.metrics()
    assert every.num_rows == len(rows)
    assert every["loss"].null_count == len(rows) - steps.num_rows
    assert run.telemetry().num_rows > 0


def test_scores_are_a_row_a_picture(small_runs: tuple[Path, Path]) -> None:
    run = raydense.Run.open(str(small_runs[0]))
    table = run.scores()
    assert table.column_names == ["prompts", "prompt", "picture", "judge", "before", "after"]
    assert table.num_rows == 2 * 2 * 2  # sets, prompts, pictures
    own = json.loads((small_runs[0] / "scores.json").read_text())
    last = table.to_pylist()[-1]
    assert last["after"] == own["unseen"][last["prompt"]]["clip"]["after"][last["picture"]]
    assert run.summary is not None
    assert run.summary["reward"]["train"]["gain"]["n"] == 4


def test_a_directory_without_a_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(raydense.ConfigError, match=r"holds no config\.yaml; give the directory of a run"):
        raydense.Run.open(tmp_path)
