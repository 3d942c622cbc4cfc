"""`raydense config`: a whole configuration as YAML that a run can start from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from raydense.cli import app
from raydense.config import load_config, preset_names


def config(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["config", *map(str, arguments)])


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [
        *((name, []) for name in preset_names()),
        (None, ["seed=7", "train.lr=1e-4", "prompts.unseen=null"]),
        ("multi-prompt", ["reward.scorer={kind: imagereward}", "samplers.labels.raydense/role=sampler"]),
        ("single-prompt", ["reward.monitors=[{kind: http, name: j, url: 'http://h/s'}]"]),
    ],
)
def test_what_it_prints_is_read_as_the_same_configuration(
    tmp_path: Path, preset: str | None, overrides: list[str]
) -> None:
    settings = [argument for override in overrides for argument in ("--set", override)]
    result = config(*(["--preset", preset] if preset else []), *settings)
    assert (result.exit_code, result.stderr) == (0, "")
    mine = tmp_path / "mine.yaml"
    mine.write_bytes(result.stdout_bytes)
    assert load_config(mine) == load_config(preset=preset, overrides=overrides)
    assert config(mine).stdout_bytes == result.stdout_bytes


def test_a_file_over_its_base_is_printed_whole(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("preset: tiny\nseed: 7\n")
    result = config(mine)
    assert result.stdout == config("--set", "seed=7").stdout
    assert "preset:" not in [line.split()[0] for line in result.stdout.splitlines() if line]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--preset", "tinny"), "--preset=tinny is unknown; allowed: flux-dev, multi-prompt, sd35-medium, sdxl, "),
        (("--set", "train.cilp=1"), "train.cilp is not a setting; allowed here: "),
        (("absent.yaml",), "absent.yaml: cannot be read (No such file or directory); give an existing YAML file"),
        (("absent.yaml", "--preset", "tiny"), "absent.yaml and --preset=tiny: give one, not both; "),
        (("--markdown", "--preset", "tiny"), "--markdown prints what may be set, whatever the configuration; give"),
        (("--markdown", "--set", "seed=1"), "--markdown prints what may be set, whatever the configuration; give"),
    ],
)  # fmt: skip
def test_bad_input_is_a_line(arguments: tuple[str, ...], said: str) -> None:
    result = config(*arguments)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith(f"raydense: {said}")


def test_tables_instead() -> None:
    result = config("--markdown")
    assert result.exit_code == 0
    assert "\n| `train.lr` | number > 0 | required | Learning rate of AdamW; constant. |\n" in result.stdout


def test_in_a_pipe_it_is_utf8_whatever_the_terminal_and_as_wide_as_it_is() -> None:
    command = [Path(sys.executable).with_name("raydense"), "config"]
    environment = {"PATH": "", "PYTHONIOENCODING": "ascii", "COLUMNS": "20", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(command, capture_output=True, env=environment, check=True)
    assert done.stdout == config().stdout_bytes
    assert "γ" in done.stdout.decode()
    assert b"\x1b" not in done.stdout
