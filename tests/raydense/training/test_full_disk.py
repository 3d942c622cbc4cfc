"""A disk that fills up while a run writes: one clear line, and the checkpoint before it is whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from raydense.cli import app
from raydense.files.durable import write_text
from raydense.records.checkpoint_files import load_checkpoint


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 0.6 MB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(mount)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.decode().strip()}")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="there is no mount command")
def test_a_full_disk_is_named_and_leaves_the_last_checkpoint_whole(
    small_values: dict[str, Any], tmp_path: Path, small_disk: Path
) -> None:
    config, run = tmp_path / "config.yaml", small_disk / "run"
    settings = {"stage": {"count": 40, "groups": 6, "steps": 2}, "checkpoint": {"keep_last": 100}}
    config.write_text(yaml.safe_dump({**small_values, **settings}))
    ended = CliRunner().invoke(app, ["train", str(config), "--local", "--out", str(run)])

    assert ended.exit_code == 1
    assert "No space left on device" in ended.stderr
    assert "Traceback" not in ended.stderr
    written = sorted(p for p in (run / "checkpoints").iterdir() if not p.name.endswith(".partial"))
    assert load_checkpoint(written[-1]).learner["step"] > 0
    assert os.statvfs(small_disk).f_bavail < 50


@pytest.mark.skipif(shutil.which("mount") is None, reason="there is no mount command")
def test_a_file_that_finds_the_disk_full_keeps_its_old_content(small_disk: Path) -> None:
    write_text(small_disk / "config.yaml", "old")
    with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
        while filler.write(bytes(4096)):
            pass
    with pytest.raises(OSError, match="No space left on device"):
        write_text(small_disk / "config.yaml", "n" * 10_000)
    assert (small_disk / "config.yaml").read_text() == "old"
    assert sorted(path.name for path in small_disk.iterdir()) == ["config.yaml", "filler"]
