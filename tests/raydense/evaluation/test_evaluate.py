"""`raydense evaluate`: base and LoRAs of any rank on the same prompts and noise, and a table that follows from them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import Result
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from raydense.cli import app
from raydense.config import ConfigError, load_config
from raydense.core.statistics import clustered_interval, win_rate
from raydense.diffusion.lora_files import read_lora
from raydense.evaluation.candidates import find_sources, fit_models
from raydense.evaluation.evaluate import read_columns, with_scorers, without_learner
from raydense.planning.placement import place
from raydense.planning.preflight import check_pipeline

LORA = "lora/pytorch_lora_weights.safetensors"
Runs = tuple[Path, Path]


def evaluate(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def read(out: Path) -> Any:
    return json.loads((out / "evaluation.json").read_text("utf-8"))


def brightness(images: np.ndarray, prompts: Sequence[str]) -> Any:
    return images.mean(axis=(1, 2, 3))


@pytest.fixture(scope="module")
def evaluated(small_runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("evaluated") / "out"
    result = evaluate(*small_runs, "--local", "--out", out)
    assert result.exit_code == 0, result.output
    return out, result


# -- the same models, prompts and noise as training's own judging ---------------------------------------------


def test_a_run_scores_as_it_scored_itself(small_runs: Runs, tmp_path: Path) -> None:
    assert evaluate(small_runs[0], "--local", "--out", tmp_path).exit_code == 0
    own, found = json.loads((small_runs[0] / "scores.json").read_text()), read(tmp_path)
    assert found["steps"] == {"count": 4, "dynamics": "ddim", "eta": 1.0, "window": None, "spacing": None}
    for prompts, by_prompt in own.items():
        assert found["prompts"][prompts] == list(by_prompt)
        for model, when in (("base", "before"), ("first", "after")):
            assert found["scores"][model][prompts]["clip"] == [row["clip"][when] for row in by_prompt.values()]


def test_a_lora_of_another_rank_and_alpha_predicts_beside_others_what_it_predicts_alone(
    small_runs: Runs, evaluated: tuple[Path, Result], tmp_path: Path
) -> None:
    assert evaluate(small_runs[0], "--local", "--set", "seed=4", "--out", tmp_path / "alone").exit_code == 0
    assert evaluate(*small_runs, "--local", "--set", "seed=4", "--out", tmp_path / "beside").exit_code == 0
    own = json.loads((small_runs[1] / "scores.json").read_text())["unseen"]
    alone, beside = read(tmp_path / "alone")["scores"], read(tmp_path / "beside")["scores"]
    np.testing.assert_allclose(
        beside["second"]["unseen"]["clip"], [r["clip"]["after"] for r in own.values()], atol=2e-3
    )
    np.testing.assert_allclose(beside["first"]["unseen"]["clip"], alone["first"]["unseen"]["clip"], atol=2e-3)
    assert np.abs(np.subtract(beside["second"]["unseen"]["clip"], beside["base"]["unseen"]["clip"])).max() > 5e-3


@pytest.mark.parametrize("name", [".", "lora"])
def test_one_lora_is_no_second_model(name: str, small_runs: Runs) -> None:
    with pytest.raises(ConfigError, match=r"is the same LoRA as .*first, which is given before; leave one of them out"):
        find_sources([str(small_runs[0]), str(small_runs[1]), f"{small_runs[0]}/{name}"])


def test_filling_with_zeros_changes_no_product(small_runs: Runs) -> None:
    sources = find_sources(list(map(str, small_runs)))
    config = load_config(small_runs[0] / "config.yaml")
    joint, (base, first, second) = fit_models(config, check_pipeline(config), sources, "LoRA")
    assert (joint.policy.lora_rank, joint.policy.lora_alpha) == (3, 3.0)
    assert not any(array.any() for array in base.weights.tensors.values())
    for model, run, scale in ((first, small_runs[0], 1.0), (second, small_runs[1], 2.0)):  # alpha / rank
        own = read_lora(str(run / "lora")).tensors
        for name in own:
            if "lora_A" in name:
                b_name = name.replace("lora_A", "lora_B")
                ours = model.weights.tensors[b_name] @ model.weights.tensors[name]
                np.testing.assert_allclose(ours, scale * own[b_name] @ own[name], atol=1e-7)


@pytest.mark.ray
def test_the_fleet_gives_the_scores_of_one_process(
    ray_cluster: None, small_runs: Runs, evaluated: tuple[Path, Result], tmp_path: Path
) -> None:
    result = evaluate(*small_runs, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "evaluation.json").read_bytes() == (evaluated[0] / "evaluation.json").read_bytes()


# -- the table ------------------------------------------------------------------------------------------------


def test_means_and_win_rates_follow_from_the_single_scores(evaluated: tuple[Path, Result]) -> None:
    found = read(evaluated[0])
    cells = {(c["model"], c["column"]): c for c in found["results"]}
    assert list(cells) == [(m, c) for m in ("base", "first", "second") for c in ("train", "unseen")]
    for (model, column), cell in cells.items():
        ours, base = (np.array(found["scores"][m][column]["clip"]) for m in (model, "base"))
        assert cell["mean"] == pytest.approx(clustered_interval(ours).as_dict())
        if model != "base":
            assert cell["wins"] == pytest.approx(win_rate(ours, base).as_dict())
            assert cell["gain"] == pytest.approx(clustered_interval(ours - base).as_dict(), abs=1e-7)
    assert cells["base", "train"]["wins"] is None


def test_csv_markdown_and_the_screen_show_the_same(evaluated: tuple[Path, Result]) -> None:
    out, result = evaluated
    (cell,) = [c for c in read(out)["results"] if (c["model"], c["column"]) == ("second", "unseen")]
    with (out / "evaluation.csv").open() as file:
        (row,) = [r for r in csv.DictReader(file) if (r["model"], r["column"]) == ("second", "unseen")]
    assert (float(row["mean"]), float(row["wins_high"])) == (cell["mean"]["mean"], cell["wins"]["high"])
    shown = f"{cell['mean']['mean']:.4f} [{cell['mean']['low']:.4f}, {cell['mean']['high']:.4f}]"
    markdown = (out / "evaluation.md").read_text()
    assert "| model | train | unseen |" in markdown
    assert any(line.startswith("| second |") and shown in line for line in markdown.splitlines())
    assert f"{cell['mean']['mean']:.4f}" in result.output


def test_styles_are_columns_and_have_a_mean(small_runs: Runs, tmp_path: Path) -> None:
    styles = {"anime": ["a cat"], "concept-art": ["a dog", "a hen"], "paintings": ["a cow"], "photo": ["a fox"]}
    for style, prompts in styles.items():
        (tmp_path / f"{style}.json").write_text(json.dumps(prompts))
    where = ("--prompts", f"set://hpsv2-benchmark?dir={tmp_path}", "--images", "3", "--out", tmp_path / "out")
    assert evaluate(small_runs[0], "--local", *where).exit_code == 0
    found = read(tmp_path / "out")
    assert list(found["prompts"]) == ["animation", "concept-art", "painting", "photo"]
    rows = [c for c in found["results"] if c["model"] == "first"]
    assert [(c["column"], c["prompts"], c["pictures"]) for c in rows] == [
        ("animation", 1, 3), ("concept-art", 2, 6), ("painting", 1, 3), ("photo", 1, 3), ("mean", 5, 15)]  # fmt: skip
    every = [score for by in found["scores"]["first"].values() for row in by["clip"] for score in row]
    assert rows[-1]["mean"]["mean"] == pytest.approx(np.mean(every))


def test_columns_are_named_by_the_user_or_their_source(small_runs: Runs, tmp_path: Path) -> None:
    config = load_config(small_runs[0] / "config.yaml")
    (tmp_path / "mine.txt").write_text("a cat\na dog\na hen\na cow\n")
    found = read_columns(config, [f"{tmp_path}/mine.txt", "cats=set://paper-train#index=0"], limit=2)
    assert found.prompts == {"mine": ("a cat", "a hen"), "cats": ("A cat and a dog.",)}
    assert not found.are_styles
    assert list(read_columns(config, ["set://paper-unseen"], None).prompts) == ["paper-unseen"]
    for name in ("run #7.txt", "run #8.txt", "what?.txt"):
        (tmp_path / name).write_text("a cat\n")
    odd = [f"{tmp_path}/{name}" for name in ("run #7.txt", "run #8.txt", "what?.txt#index=0")]
    assert list(read_columns(config, odd, None).prompts) == ["run #7", "run #8", "what?"]
    with pytest.raises(ConfigError, match="'mine' is a column already; give another name, NAME=PROMPTS"):
        read_columns(config, [f"{tmp_path}/mine.txt"] * 2, None)


def test_several_judges_score_the_same_pictures(small_runs: Runs, scorer_dir: Path, tmp_path: Path) -> None:
    judges = (
        "--scorer", f"{{kind: clip, name: clip, model: {scorer_dir}}}",
        "--scorer", f"{{kind: callable, name: bright, target: '{__name__}:brightness'}}",
    )  # fmt: skip
    assert evaluate(small_runs[0], "--local", *judges, "--out", tmp_path).exit_code == 0
    found = read(tmp_path)
    own = json.loads((small_runs[0] / "scores.json").read_text())["train"]
    assert found["scores"]["first"]["train"]["clip"] == [row["clip"]["after"] for row in own.values()]
    assert np.min(found["scores"]["first"]["train"]["bright"]) > 1
    assert (tmp_path / "evaluation.md").read_text().count("wins against the base") == 2


def test_samplers_alone_have_the_whole_cluster_whatever_the_learner_had() -> None:
    config = without_learner(load_config(overrides=["learner.device=cuda:1", "learner.num_gpus=2"]))
    assert place(config, 0).sampler_gpus == 0
    assert place(config, 2).sampler_gpus == 1


def test_a_judges_value_is_read_as_set_reads_it(small_runs: Runs) -> None:
    config = load_config(small_runs[0] / "config.yaml")
    judges = with_scorers(config, ["hpsv2", "{kind: clip, name: run #7, model: a/b #1}"]).reward.judges
    assert [judge.name for judge in judges] == ["hpsv2", "run #7"]
    assert judges[1].model == "a/b #1"


# -- LoRAs by file --------------------------------------------------------------------------------------------


def test_a_lora_file_elsewhere_needs_a_configuration(small_runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    path = tmp_path / "mine" / "pytorch_lora_weights.safetensors"
    path.write_bytes((small_runs[0] / LORA).read_bytes())
    result = evaluate(path, "--local", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "a LoRA file does not say how to sample; give the run it is of, --preset or --config" in result.stderr
    config = small_runs[0] / "config.yaml"
    assert evaluate(path, "--local", "--config", config, "--out", tmp_path / "out").exit_code == 0
    assert evaluate(small_runs[0] / LORA, "--local", "--out", tmp_path / "in-its-run").exit_code == 0
    assert read(tmp_path / "out")["scores"]["mine"] == read(tmp_path / "in-its-run")["scores"]["first"]


def test_where_training_started_need_not_be_there_any_more(small_runs: Runs, tmp_path: Path) -> None:
    values = yaml.safe_load((small_runs[0] / "config.yaml").read_text())
    gone = {**values, "policy": {**values["policy"], "init_lora": str(tmp_path / "gone")}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(gone))
    (tmp_path / "lora").mkdir()
    (tmp_path / LORA).write_bytes((small_runs[0] / LORA).read_bytes())
    assert evaluate(tmp_path, "--local", "--images", "1", "--out", tmp_path / "out").exit_code == 0


def test_a_file_that_is_no_lora_of_this_model_is_listed(small_runs: Runs, tmp_path: Path) -> None:
    tensors = load_file(small_runs[0] / LORA)
    damaged = tmp_path / "damaged.safetensors"
    name = next(n for n in tensors if n.endswith(("down.weight", "lora_A.weight")))
    save_file({**tensors, name: np.zeros((2, 3), np.float32)}, damaged)
    result = evaluate(damaged, "--local", "--config", small_runs[0] / "config.yaml", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert f"LoRA={damaged} is not this policy's LoRA; 1 misshapen" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_models_of_different_bases_are_not_compared(small_runs: Runs, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "lora").mkdir(parents=True)
    values = yaml.safe_load((small_runs[0] / "config.yaml").read_text())
    (other / "config.yaml").write_text(yaml.safe_dump({**values, "policy": {**values["policy"], "model": "a/b"}}))
    result = evaluate(small_runs[0], other, "--local")
    assert result.exit_code == 2
    assert "other is of the base model a/b@None, not" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--scorer", "hps"], "--scorer 'hps': "),
        (["--scorer", "hpsv2 # the newest"], "--scorer 'hpsv2 # the newest': Input tag 'hpsv2 # the newest'"),
        (["--scorer", ""], "--scorer '': a value is missing; give one"),
        (["--scorer", "{kind: clip, kind: hpsv2}"], "'kind' is there twice"),
        (["--scorer", "{kind: clip"], "expected such as --scorer '{kind: hpsv2, version: v2.1}'"),
        (["--prompts", "absent.txt"], "--prompts=absent.txt: cannot be read (No such file"),
        (["--set", "train.lr=1"], "an evaluation may change only seed"),
        (["--scorer", "{kind: clip, name: c, model: /absent}"], "scorer c: model=/absent is not a directory"),
    ],
)
def test_bad_input_is_one_line_before_anything_starts(
    small_runs: Runs, tmp_path: Path, arguments: list[str], said: str
) -> None:
    result = evaluate(small_runs[0], "--local", *arguments, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_evaluation_is_never_overwritten(small_runs: Runs, evaluated: tuple[Path, Result]) -> None:
    result = evaluate(small_runs[0], "--local", "--out", evaluated[0])
    assert result.exit_code == 2
    assert "holds an evaluation already and is never overwritten" in result.stderr
