"""`evaluate.every_steps`: the held-out prompts are judged during training, which goes on as if they were not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from raydense.cli import app
from raydense.config import Config
from raydense.core.statistics import clustered_interval
from raydense.planning.dry_run import count_judged
from raydense.planning.units import PromptSets, evaluation_due, held_out_prompts

LORA = "lora/pytorch_lora_weights.safetensors"


def train(values: dict[str, Any], out: Path, **evaluate: Any) -> Path:
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump({**values, "evaluate": {**values["evaluate"], **evaluate}}))
    result = CliRunner().invoke(app, ["train", "--local", str(file), "--out", str(out)])
    assert result.exit_code == 0, result.output
    return out


def rows(run: Path, *kinds: str) -> list[dict[str, Any]]:
    return [row for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if row["kind"] in kinds]


@pytest.fixture(scope="module")
def run(small_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(small_values, tmp_path_factory.mktemp("runs") / "run", every_steps=2)


def test_training_is_not_disturbed(run: Path, small_runs: tuple[Path, Path]) -> None:
    without = small_runs[0]
    assert (run / LORA).read_bytes() == (without / LORA).read_bytes()
    assert rows(run, "step", "stage") == rows(without, "step", "stage")
    assert (run / "scores.json").read_bytes() == (without / "scores.json").read_bytes()


def test_a_row_every_so_many_steps_of_the_whole_run_with_the_held_out_prompts(run: Path) -> None:
    found = rows(run, "evaluation")
    during = [(row["step"], row["stage"]) for row in found if set(row) & {"evaluate/unseen/clip"}]
    assert during == [(0, 0), (2, 0), (4, 1), (6, 1)]
    assert [row["step"] for row in found if "evaluate/train/clip" in row] == [0, 6]  # the base and the tuned model
    order = [row["kind"] + str(row["step"]) for row in rows(run, "step", "evaluation")]
    assert order.index("evaluation4") == order.index("step4") + 1


def test_it_judges_what_the_run_judges_at_its_end(run: Path) -> None:
    scores = json.loads((run / "scores.json").read_text())["unseen"]
    after = np.array([row["clip"]["after"] for row in scores.values()], np.float32)
    (row,) = [row for row in rows(run, "evaluation") if row["step"] == 6 and "evaluate/unseen/clip" in row]
    assert row["evaluate/unseen/clip"] == float(clustered_interval(after).mean)
    expected = clustered_interval(after)
    assert row["intervals"]["evaluate/unseen/clip"] == [expected.low, expected.high]


def test_the_weights_are_those_of_the_step(run: Path) -> None:
    means = [row["evaluate/unseen/clip"] for row in rows(run, "evaluation") if "evaluate/unseen/clip" in row]
    assert len(set(means)) == 4


def test_the_trained_prompts_stand_in_where_there_are_no_others(small_config: Callable[..., Config]) -> None:
    config = small_config(evaluate={"prompts": 1, "every_steps": 2})
    assert held_out_prompts(config, PromptSets(("a cat", "a dog"), ("a hen", "a cow"))) == {"unseen": ("a hen",)}
    assert held_out_prompts(config, PromptSets(("a cat", "a dog"), ())) == {"train": ("a cat",)}
    assert [step for step in range(7) if evaluation_due(config, step)] == [2, 4, 6]
    assert not any(evaluation_due(small_config(), step) for step in range(7))


def test_the_plan_counts_its_pictures(small_config: Callable[..., Config]) -> None:
    sets = PromptSets(("a cat", "a dog"), ("a hen", "a cow"))
    without, with_it = (count_judged(small_config(evaluate={"every_steps": every}), sets) for every in (None, 2))
    assert with_it - without == 3 * 2 * 2  # of 6 steps three times, 2 prompts, 2 pictures each
    both = count_judged(small_config(train={"ema": 0.9}), sets)
    assert both - without == 4 * 2  # the average and the last step: 2 prompts of 2 sets, 2 pictures each
