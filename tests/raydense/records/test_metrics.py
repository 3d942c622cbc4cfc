"""Metrics as JSON lines."""

from __future__ import annotations

import json
from pathlib import Path

from raydense.records.metrics import JsonLines


def test_rows_are_there_at_once_and_floats_are_exact(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "metrics.jsonl")
    rows = [{"step": 1, "loss": 0.1 + 0.2}, {"step": 2, "loss": 1e-310, "prompt": "ein Käfer"}]
    for row in rows:
        lines.write(row)
    text = (tmp_path / "metrics.jsonl").read_text("utf-8")  # before close: a killed run keeps its rows
    assert [json.loads(line) for line in text.splitlines()] == rows
    assert "Käfer" in text
    lines.close()


def test_an_existing_file_is_continued(tmp_path: Path) -> None:
    for step in (1, 2):
        lines = JsonLines(tmp_path / "metrics.jsonl")
        lines.write({"step": step})
        lines.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


def test_what_was_written_after_a_checkpoint_is_cut_off_when_its_run_continues(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.write({"step": 1})
    kept = lines.size
    lines.write({"step": 2})
    lines.close()
    lines = JsonLines(tmp_path / "metrics.jsonl", keep_bytes=kept)
    lines.write({"step": "2 again"})
    assert lines.size == (tmp_path / "metrics.jsonl").stat().st_size
    lines.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": "2 again"}\n'
