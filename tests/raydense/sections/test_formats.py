"""A setting that a file of an earlier format leaves unsaid means what code did then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from raydense.config import Config, ConfigError, load_config, load_run_config
from raydense.sections.formats import BEFORE, FORMAT, written_today

THEN = {2: {"train.ties": "random"}, 3: {"train.ties": "half", "new.deep.setting": 3}}
DEEP = {"deep": {"setting": 3}}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"format": 1}, {"train": {"ties": "random"}, "new": DEEP}),
        ({"format": 2}, {"train": {"ties": "half"}, "new": DEEP}),
        ({"format": 3}, {}),
        ({}, {}),
        ({"format": 1, "train": {"ties": "a", "lr": 1}}, {"train": {"ties": "a", "lr": 1}, "new": DEEP}),
        ({"format": 1, "train": {"ties": None}, "new": 5}, {"train": {"ties": None}, "new": 5}),
        ({"format": 2, "new": {"deep": {"x": 1}}},
         {"train": {"ties": "half"}, "new": {"deep": {"x": 1, "setting": 3}}}),
    ],
)  # fmt: skip
def test_what_is_unsaid_is_what_code_of_the_format_did(values: dict[str, Any], expected: dict[str, Any]) -> None:
    assert written_today(values, 3, THEN) == expected


@pytest.mark.parametrize("number", [0, 4, -1, "2", None, True, 2.0, [1]])
def test_a_number_that_is_none_of_ours_is_refused(number: Any) -> None:
    with pytest.raises(ValueError, match=r"this raydense reads configurations of format 1 to 3; install the one that"):
        written_today({"format": number}, 3, THEN)


def test_every_format_has_its_entry() -> None:
    assert list(BEFORE) == list(range(2, FORMAT + 1))


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the default of a setting had been 0.5 before format 2; it is 1."""
    monkeypatch.setitem(BEFORE, 2, {"train.max_grad_norm": 0.5})  # type: ignore[arg-type]


@pytest.mark.usefixtures("moved")
def test_a_runs_file_without_a_number_is_of_the_first_format_and_a_persons_is_of_today(
    small_values: dict[str, Any], small_config: Callable[..., Config], tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(small_values))
    assert load_run_config(file).train.max_grad_norm == 0.5
    assert load_config(file).train.max_grad_norm == 1.0
    file.write_text(small_config().to_yaml())
    assert load_run_config(file) == load_config(file) == small_config()


def test_a_file_of_later_code_is_one_line(small_config: Callable[..., Config], tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(small_config().to_yaml().replace(f"format: {FORMAT}", "format: 99"))
    for read in (load_config, load_run_config):
        with pytest.raises(ConfigError, match=r"^format=99: this raydense reads configurations of format 1 to"):
            read(file)
