"""A mixture of z-scores: what each stage divides by, where that is recorded, and that no cut of a run changes it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from raydense.cli import app
from raydense.config import ConfigError
from raydense.core.types import UnitReport
from raydense.records.scores import Judgement
from raydense.records.segments import read_segment
from raydense.rewards.mixture import weighted_sum
from raydense.sections.rewards import MixtureScorerConfig
from raydense.training.normalising import StageScales

LORA = "lora/pytorch_lora_weights.safetensors"
WEIGHTS = {"red": 1.0, "contrast": -0.5}


def red(images: np.ndarray, prompts: Sequence[str]) -> Any:
    return 1000 + images[..., 0].mean(axis=(1, 2))


def contrast(images: np.ndarray, prompts: Sequence[str]) -> Any:
    return 1e-3 * images.std(axis=(1, 2, 3))


def mixture(**changes: Any) -> dict[str, Any]:
    components = [
        {"weight": weight, "scorer": {"kind": "callable", "name": name, "target": f"{__name__}:{name}"}}
        for name, weight in WEIGHTS.items()
    ]
    return {"kind": "mixture", "normalise": "zscore", "components": components, **changes}


def train(*arguments: str | Path) -> None:
    result = CliRunner().invoke(app, ["train", *map(str, arguments)])
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def config(small_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = {
        **small_values,
        "reward": {"scorer": mixture()},
        "replay": {"segments": True, "keep_segments": True},
        "stage": {"count": 3, "groups": 5, "steps": 2},
    }
    file = tmp_path_factory.mktemp("config") / "config.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


@pytest.fixture(scope="module")
def run(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    train(config, "--local", "--out", out)
    return out


def stage_reports(run: Path, stage: int) -> list[UnitReport]:
    return [read_segment(path)[0] for path in sorted((run / "segments" / f"stage-{stage:04d}").glob("*.arrow"))]


def component(reports: Sequence[UnitReport], name: str) -> np.ndarray:
    return np.array([score for r in reports for g in r.groups for score in g.monitors[name]], dtype=np.float64)


def test_the_order_of_a_mixture_is_what_its_definition_says() -> None:
    scores = {"a": np.float32([1, 2, 3, 4]), "b": np.float32([300, 900, 100, 500]), "other": np.float32([9, 9, 9, 9])}
    scales = (("a", 2.0, 0.5), ("b", 400.0, 200.0))
    total = weighted_sum(scores, {"a": 1.0, "b": 2.0}, scales)
    assert total.dtype == np.float32
    assert total.tolist() == [-2 - 1, 0 + 5, 2 - 3, 4 + 1]
    assert np.argsort(total, kind="stable").tolist() == [0, 2, 1, 3]
    assert weighted_sum(scores, {"a": 1.0, "b": 2.0}).tolist() == [601, 1802, 203, 1004]  # b alone decides
    assert weighted_sum(scores, {"a": 1.0}, (("a", 1.0, 0.0),)).tolist() == [0, 1, 2, 3]  # all equal: not divided


def test_a_stage_divides_by_the_stage_before_and_the_first_by_the_base_models_pictures(run: Path) -> None:
    recorded = json.loads((run / "normalisation.json").read_text())
    base = json.loads((run / "scores-base.json").read_text())["train"]
    for name in WEIGHTS:
        assert recorded["0"][name]["mean"] == np.mean(np.float64(base[name]))
        assert recorded["0"][name]["std"] == np.std(np.float64(base[name]))
        for stage in (1, 2):
            before = component(stage_reports(run, stage - 1), name)
            assert recorded[str(stage)][name]["mean"] == pytest.approx(before.mean(), rel=1e-12)
            assert recorded[str(stage)][name]["std"] == pytest.approx(before.std(), rel=1e-9)


def test_every_reward_is_the_sum_by_those_statistics_and_its_rank_chose_what_is_kept(run: Path) -> None:
    recorded = json.loads((run / "normalisation.json").read_text())
    for stage in range(3):
        entry = recorded[str(stage)]
        for path in sorted((run / "segments" / f"stage-{stage:04d}").glob("*.arrow")):
            report, groups = read_segment(path)
            assert report.unit.scales == tuple((n, entry[n]["mean"], entry[n]["std"]) for n in WEIGHTS)
            for meta, group in zip(report.groups, groups, strict=True):
                z = {n: (np.array(meta.monitors[n]) - entry[n]["mean"]) / entry[n]["std"] for n in WEIGHTS}
                expected = np.float32(z["red"] - 0.5 * z["contrast"])
                np.testing.assert_allclose(meta.rewards, expected, rtol=1e-6)
                assert group.rewards.tolist() == [sorted(meta.rewards)[p] for p in (0, 1, 3)]


def test_the_statistics_are_in_the_metrics_and_the_components_too(run: Path) -> None:
    recorded = json.loads((run / "normalisation.json").read_text())
    rows = [row for row in map(json.loads, (run / "metrics.jsonl").open()) if row["kind"] == "stage"]
    for stage, row in enumerate(rows):
        for name in WEIGHTS:
            assert row[f"reward/normalise/{name}/mean"] == recorded[str(stage)][name]["mean"]
            assert row[f"reward/normalise/{name}/std"] == recorded[str(stage)][name]["std"]
            scores = component(stage_reports(run, stage), name)
            assert row[f"reward/monitor/{name}"] == pytest.approx(scores.mean(), rel=1e-6)


def test_before_and_after_are_judged_on_one_scale(run: Path) -> None:
    first = json.loads((run / "normalisation.json").read_text())["0"]
    scales = tuple((name, entry["mean"], entry["std"]) for name, entry in first.items())
    for prompt, by_scorer in json.loads((run / "scores.json").read_text())["train"].items():
        for when in ("before", "after"):
            parts = {name: np.float32(by_scorer[name][when]) for name in WEIGHTS}
            assert by_scorer["mixture"][when] == weighted_sum(parts, WEIGHTS, scales).tolist(), prompt


def test_an_evaluation_gives_the_run_the_scores_that_it_gave_itself(run: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["evaluate", str(run), "--local", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "mixture is of z-scores by the first stage's statistics of run" in " ".join(done.output.split())
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["normalisation"] == json.loads((run / "normalisation.json").read_text())["0"]
    for prompts, by_prompt in json.loads((run / "scores.json").read_text()).items():
        for model, when in (("base", "before"), ("run", "after")):
            assert found["scores"][model][prompts]["mixture"] == [row["mixture"][when] for row in by_prompt.values()]


def test_an_evaluation_by_a_mixture_of_no_run_takes_the_base_models_scale(run: Path, tmp_path: Path) -> None:
    other = mixture(name="other", components=mixture()["components"][:1])
    command = ["evaluate", str(run), "--local", "--scorer", json.dumps(other), "--out", str(tmp_path)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "by the statistics of the base model's pictures here" in " ".join(done.output.split())
    found = json.loads((tmp_path / "evaluation.json").read_text())
    base = np.concatenate([np.ravel(by["other"]) for by in found["scores"]["base"].values()])
    assert (base.mean(), base.std()) == (pytest.approx(0, abs=1e-5), pytest.approx(1, abs=1e-5))


def test_a_run_that_continues_gives_the_same_bytes(config: Path, run: Path, tmp_path: Path) -> None:
    train(config, "--local", "--out", tmp_path / "run", "--set", "stage.count=1")
    train("--resume", tmp_path / "run", "--local", "--set", "stage.count=3")
    for name in ("lora/pytorch_lora_weights.safetensors", "normalisation.json", "watch.json"):
        ours, whole = ((root / name).read_bytes() for root in (tmp_path / "run", run))
        assert ours[-2000:] == whole[-2000:], name  # the LoRA's header names its settings, of which stage.count differs


def test_learning_from_its_stored_groups_gives_the_same_steps(run: Path, tmp_path: Path) -> None:
    train("--replay-from", run, "--out", tmp_path / "run")
    assert (tmp_path / "run" / LORA).read_bytes() == (run / LORA).read_bytes()


@pytest.mark.slow
@pytest.mark.ray
def test_two_samplers_give_the_same_bytes(warm_python: Path, config: Path, run: Path, tmp_path: Path) -> None:
    """plain: `test_where_it_runs_changes_no_byte`; `test_a_run_that_continues_gives_the_same_bytes`."""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), environment.get("PYTHONPATH", "")])
    local = yaml.safe_load(config.read_text())
    for part in local["reward"]["scorer"]["components"]:  # by a name that a worker's process can import
        part["scorer"]["target"] = f"test_normalising:{part['scorer']['name']}"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(local))
    command = [warm_python, "-m", "raydense.cli", "train", tmp_path / "config.yaml", "--out", tmp_path / "run"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "normalisation.json").read_bytes() == (run / "normalisation.json").read_bytes()
    assert (tmp_path / "run" / LORA).read_bytes()[-2000:] == (run / LORA).read_bytes()[-2000:]


def test_lost_statistics_are_named(tmp_path: Path) -> None:
    scales = StageScales(MixtureScorerConfig.model_validate(mixture()), tmp_path)
    with pytest.raises(ConfigError, match=r"normalisation\.json has no entry for stage 2; restore the file"):
        scales.of(2)
    scores = {name: np.float32([[1, 2], [3, 4]]) for name in WEIGHTS}
    scales.calibrate(Judgement({"train": scores}))
    scales.calibrate(Judgement({"train": {name: 2 * values for name, values in scores.items()}}))  # the base's alone
    assert scales.of(0)[0] == ("red", 2.5, pytest.approx(np.sqrt(1.25)))


def test_other_rewards_need_none(tmp_path: Path) -> None:
    scales = StageScales(MixtureScorerConfig.model_validate(mixture(normalise="none")), tmp_path)
    scales.calibrate(Judgement({"train": {}}))
    scales.update(0, [])
    assert (scales.of(0), scales.values(0), list(tmp_path.iterdir())) == ((), {}, [])
