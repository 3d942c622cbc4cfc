"""The run directory is new, or nothing happens."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from raydense.config import Config, ConfigError, load_config
from raydense.records.run_dir import RunDirectory, default_out
from raydense.records.scores import Judgement


def test_a_new_directory_holds_the_resolved_configuration(small_config: Callable[..., Config], tmp_path: Path) -> None:
    run_dir = RunDirectory.create(tmp_path / "deep" / "run", small_config())
    assert load_config(run_dir.config_file) == small_config()
    assert all(d.is_dir() for d in (run_dir.images, run_dir.checkpoints, run_dir.lora))


def test_an_empty_directory_is_taken(small_config: Callable[..., Config], tmp_path: Path) -> None:
    assert RunDirectory.create(tmp_path, small_config()).config_file.parent == tmp_path


def test_what_is_there_already_is_never_overwritten(small_config: Callable[..., Config], tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    for taken in (tmp_path, tmp_path / "precious"):
        with pytest.raises(ConfigError, match=f"--out={taken} is not empty and is never overwritten"):
            RunDirectory.create(taken, small_config())
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_place_that_cannot_be_written_is_named(small_config: Callable[..., Config], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "run"
    with pytest.raises(ConfigError, match=f"--out={out} cannot be written .Not a directory"):
        RunDirectory.create(out, small_config())


def test_the_default_directory_has_the_name_and_the_time(small_config: Callable[..., Config]) -> None:
    assert re.fullmatch(r"runs/small-\d{8}-\d{6}", str(default_out(small_config())))


def test_the_base_models_scores_come_back_exactly(small_config: Callable[..., Config], tmp_path: Path) -> None:
    run_dir = RunDirectory.create(tmp_path, small_config())
    scores = np.random.default_rng(0).standard_normal((3, 2)).astype(np.float32)
    scores[1, 0] = np.nan  # which JSON has not
    run_dir.write_base_judgement(Judgement({"train": {"clip": scores}}))
    assert "NaN" not in (run_dir.root / "scores-base.json").read_text("utf-8")
    back = run_dir.read_base_judgement().scores["train"]["clip"]
    assert back.dtype == np.float32
    assert np.array_equal(back, scores, equal_nan=True)


def test_the_summary_is_readable_json(small_config: Callable[..., Config], tmp_path: Path) -> None:
    run_dir = RunDirectory.create(tmp_path, small_config())
    run_dir.write_summary({"name": "Käfer", "wall_s": 1.5})
    text = (tmp_path / "summary.json").read_text("utf-8")
    assert json.loads(text) == {"name": "Käfer", "wall_s": 1.5}
    assert text.endswith("}\n")
