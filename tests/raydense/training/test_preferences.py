"""Learning from people's orders of stored trajectories; the oracle, who sees the decoded pictures, is the "human"."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import Result
from safetensors.numpy import load_file
from typer.testing import CliRunner

from raydense.cli import app
from raydense.config import load_config
from raydense.diffusion.lora import read_origin
from raydense.records.segments import read_segment
from raydense.tiny import oracle
from raydense.wiring.policies import build_policy

LORA = "lora/pytorch_lora_weights.safetensors"
SETTINGS = ["learner.threads=1", "stage.count=1", "stage.groups=4", "stage.steps=3", "train.batch_groups=4",
            "replay.segments=true", "replay.keep_segments=true", "evaluate.prompts=1",
            "evaluate.images_per_prompt=1", "reward.monitors=[]",
            "reward.scorer={kind: callable, name: oracle, target: 'raydense.tiny.oracle:score'}"]  # fmt: skip


def train(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the embedded model whose scorer was the oracle itself."""
    out = tmp_path_factory.mktemp("source") / "run"
    done = train("--local", "--out", out, *(part for s in SETTINGS for part in ("--set", s)))
    assert done.exit_code == 0, done.output
    return out


@pytest.fixture(scope="module")
def labels(source: Path) -> list[dict[str, Any]]:
    """The oracle's ranks of what it sees: 1 for a right picture, 2 for a wrong one, so that most are ties."""
    policy = build_policy(
        load_config(source / "config.yaml"), dtype="float32", device=torch.device("cpu"), with_decoder=True
    )
    rows = []
    for path in sorted((source / "segments").rglob("*.arrow")):
        for group in read_segment(path)[1]:
            images = policy.decode(torch.from_numpy(np.array(group.latents[:, -1])))
            for trajectory, right in enumerate(oracle.score(images, [group.prompt] * len(images))):
                key = {"stage": group.stage, "group": group.index, "trajectory": trajectory}
                rows.append({**key, "rank": int(2 - right)})
    assert {row["rank"] for row in rows} == {1, 2}
    return rows


def write(rows: list[dict[str, Any]], path: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_ranks_of_a_human_are_learned_as_the_scores_of_a_scorer(source: Path, labels: Any, tmp_path: Path) -> None:
    """Ties, too: the same judge, once as a scorer and once through the file, gives the same weights to the last bit."""
    file = write(labels, tmp_path / "labels.parquet")
    done = train("--replay-from", source, "--preferences", file, "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert "4 groups are ordered by" in done.output
    ours, theirs = load_file(tmp_path / "run" / LORA), load_file(source / LORA)
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    learned_from = {
        "kind": "preferences",
        "file": "labels.parquet",
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    assert read_origin(tmp_path / "run" / LORA)["reward"] == learned_from
    assert read_origin(source / LORA)["reward"]["name"] == "oracle"
    exported = CliRunner().invoke(app, ["export", str(tmp_path / "run"), "--to", str(tmp_path / "to")])
    assert exported.exit_code == 0, exported.output
    card = (tmp_path / "to" / "README.md").read_text("utf-8")
    assert f"| reward | orders that people gave: `labels.parquet` (sha256 `{learned_from['sha256']}`) |" in card
    assert "oracle" not in card


def test_pairs_with_ties_are_learned_and_order_matters(source: Path, tmp_path: Path) -> None:
    pair = {"stage": 0, "group": 1, "winner": 4, "loser": 0, "tie": False}
    tied = {"stage": 0, "group": 2, "winner": 1, "loser": 2, "tie": True}
    results = []
    for name, rows in {
        "one": [pair],
        "with tie": [pair, tied],
        "turned": [{**pair, "winner": 0, "loser": 4}],
    }.items():
        file = write(rows, tmp_path / f"{name}.parquet")
        done = train("--replay-from", source, "--preferences", file, "--out", tmp_path / name)
        assert done.exit_code == 0, done.output
        results.append(load_file(tmp_path / name / LORA))
        assert f"{int(name == 'with tie')} tied pairs left out" in done.output
    one, with_tie, turned = results
    assert all(np.array_equal(one[name], with_tie[name]) for name in one)
    assert not all(np.array_equal(one[name], turned[name]) for name in one)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"stage": 0, "group": 0, "winner": 1}], "needs the columns stage, group, trajectory, rank or stage, group"),
        ([{"stage": 0, "group": 99, "winner": 1, "loser": 2}], "row 0: group=99; expected a whole number from 0 to 3"),
        ([{"stage": 0, "group": 0, "winner": 1, "loser": 1}], "row 0 compares trajectory 1 with itself"),
        ([{"stage": 0, "group": 0, "trajectory": 0, "rank": 1}], "group 0 ranks 1 of its 5 trajectories"),
        ([{"stage": 0, "group": 0, "winner": 1, "loser": 2, "tie": True}], "orders no group of stage 0"),
        ([{"stage": 0, "group": 0, "winner": 1, "loser": 2, "tie": "false"}], "row 0: tie='false'; expected true, fal"),
        ([{"stage": 0, "group": 0, "winner": 1, "loser": 2, "trajectory": 1, "rank": 1}], "is of both kinds; keep the"),
        ([{"stage": 0, "group": 0, "winner": 1, "loser": None}], "row 0: loser=None; expected a whole number"),
    ],
)
def test_a_file_that_cannot_be_used(source: Path, tmp_path: Path, rows: list[dict[str, Any]], said: str) -> None:
    file = write(rows, tmp_path / "bad.parquet")
    refused = train("--replay-from", source, "--preferences", file, "--out", tmp_path / "run")
    assert refused.exit_code == 2
    assert said in refused.output
    assert not (tmp_path / "run").exists()


def test_it_needs_the_run_whose_trajectories_are_ordered() -> None:
    refused = train("--preferences", "x.parquet")
    assert refused.exit_code == 2
    assert "give --replay-from their run" in refused.output
