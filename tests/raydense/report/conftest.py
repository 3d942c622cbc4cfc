"""A small finished run, and copies of it to cut."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from raydense.config import Config
from raydense.records.progress import ProgressDisplay
from raydense.training.run import train

WATCHED = {"kind": "callable", "name": "reddish", "target": "tests_report_judges:reddish"}


@pytest.fixture(scope="session")
def finished(small_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stages with a monitor, judged on the way as well."""
    home = tmp_path_factory.mktemp("report")
    (home / "tests_report_judges.py").write_text(
        "def reddish(images, prompts):\n    return images[..., 0].mean((1, 2)) / 255\n"
    )
    scorer = small_values["reward"]["scorer"]
    values = {
        **small_values,
        "reward": {"scorer": scorer, "monitors": [WATCHED]},
        "evaluate": {**small_values["evaluate"], "every_steps": 2},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(home)
        train(Config.model_validate(values), home / "run", local=True, display=ProgressDisplay(Console(quiet=True)))
    return home / "run"


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"
