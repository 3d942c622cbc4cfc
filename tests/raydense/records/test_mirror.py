"""A run at a URI of pyarrow.fs: written here, whole there at every checkpoint, and continued from there."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from raydense.cli import app
from raydense.config import Config, ConfigError
from raydense.records.checkpoint_files import load_checkpoint
from raydense.records.mirror import Mirror
from raydense.records.run_dir import RunDirectory, here_until_done


def files(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_a_push_copies_what_changed_and_removes_what_is_gone(tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    mirror = Mirror(f"file://{remote}")
    assert mirror.is_empty
    (mirror.local / "a").mkdir()
    (mirror.local / "a" / "one").write_text("1")
    (mirror.local / "two").write_text("2")
    (mirror.local / "a" / "cut.partial").write_text("never copied")
    mirror.push()
    assert files(remote) == {"a/one": b"1", "two": b"2"}
    (mirror.local / "a" / "one").write_text("11")
    (mirror.local / "two").unlink()
    mirror.push()
    assert files(remote) == {"a/one": b"11"}


def test_a_pull_brings_everything(tmp_path: Path) -> None:
    (tmp_path / "remote" / "deep").mkdir(parents=True)
    (tmp_path / "remote" / "deep" / "file").write_bytes(b"content")
    mirror = Mirror(f"file://{tmp_path / 'remote'}")
    assert not mirror.is_empty
    mirror.pull()
    assert files(mirror.local) == {"deep/file": b"content"}


def test_an_unknown_scheme_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--out=nowhere://x/y cannot be reached .*; give another place"):
        Mirror("nowhere://x/y")


def test_a_place_that_can_be_looked_at_but_not_written_is_one_line_before_any_work(
    small_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a bucket that is not there, or whose key may only read; those, and --resume: tests/hosts/test_s3.py."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(small_values))
    command = ["train", "--local", str(tmp_path / "config.yaml"), "--out", "file:///dev/null/run"]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 2
    assert re.search(r"--out=file:///dev/null/run cannot be written \(.+\); give another place\n", refused.output)
    assert refused.output.count("\n") == 1
    assert list(tmp_path.glob("raydense-run-*")) == []


def test_a_run_that_is_refused_leaves_nothing(tmp_path: Path, small_config: Callable[..., Config]) -> None:
    mirror = Mirror(f"file://{tmp_path / 'there'}")
    run_dir = RunDirectory.create(mirror.local, small_config(), mirror)
    assert set(files(tmp_path / "there")) == {"config.yaml"}
    run_dir.discard()
    assert files(tmp_path / "there") == {}


@pytest.mark.parametrize(
    ("ends_with", "kept"),
    [(None, False), (ConfigError("refused"), False), (RuntimeError("broke"), True), (KeyboardInterrupt(), True)],
)
def test_the_copy_here_goes_when_all_of_it_is_there(
    ends_with: BaseException | None, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mirror, said = Mirror(f"file://{tmp_path / 'there'}"), list[str]()
    assert list(tmp_path.iterdir()) == []  # nothing before it is used
    (mirror.local / "file").write_text("content")
    with contextlib.suppress(RuntimeError, ConfigError, KeyboardInterrupt), here_until_done(mirror, said.append):
        if ends_with is not None:
            raise ends_with
    assert list(tmp_path.glob("raydense-run-*")) == ([mirror.local] if kept else [])
    assert said == ([f"the copy of file://{tmp_path}/there on this machine is kept in {mirror.local}"] if kept else [])


def test_without_a_mirror_nothing_is_removed_or_said(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="broke"), here_until_done(None, pytest.fail):
        raise RuntimeError("broke")


def test_a_run_at_a_uri_is_the_run_in_a_directory_and_never_overwritten(
    small_values: dict[str, Any], small_runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(small_values))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    uri = f"file://{tmp_path / 'there'}"

    def train(out: str) -> Any:
        return CliRunner().invoke(app, ["train", str(config), "--local", "--out", out])

    assert train(uri).exit_code == 0
    here, there = files(small_runs[0]), files(tmp_path / "there")
    event_files = ("tensorboard/",)  # named after the moment
    assert [n for n in sorted(there) if not n.startswith(event_files)] == [
        n for n in sorted(here) if not n.startswith(event_files)
    ]
    assert sum(n.startswith(event_files) for n in there) == sum(n.startswith(event_files) for n in here)
    same = [name for name in here if name.startswith(("lora/", "metrics", "images/", "checkpoints/"))]
    assert len(same) > 8 and all(here[name] == there[name] for name in same)
    assert load_checkpoint(tmp_path / "there" / "checkpoints" / "stage-0002").position.stages == 2

    again = train(uri)
    assert again.exit_code == 2
    assert f"--out={uri} is not empty and is never overwritten" in again.output
    assert files(tmp_path / "there") == there

    refused = CliRunner().invoke(app, ["train", "--local", "--resume", uri, "--set", "train.lr=1"])
    assert refused.exit_code == 2
    assert "train.lr: 0.01 -> 1.0" in refused.output
    assert files(tmp_path / "there") == there
    assert list(tmp_path.glob("raydense-run-*")) == []
