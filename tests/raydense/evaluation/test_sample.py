"""`raydense sample`: base and tuned pictures of the same noise, and the chain of predictions that led to them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from raydense.cli import app
from raydense.config import Config, ConfigError, load_config
from raydense.core.types import RenderUnit
from raydense.evaluation.candidates import Model, find_sources, fit_models
from raydense.evaluation.sample import (
    RULE,
    Drawing,
    Judge,
    distances,
    draw,
    judge_scales,
    settled_at,
    shown_steps,
)
from raydense.pipelines.pipeline_files import PipelineFiles
from raydense.planning.preflight import check_pipeline
from raydense.records.grids import FRAME, GAP, LABEL, read_grid
from raydense.sections.rewards import RewardConfig
from raydense.training.normalising import FILE as NORMALISATION
from raydense.wiring import policies
from raydense.wiring.roles import build_sampler
from raydense.wiring.scorers import build_scorer

Runs = tuple[Path, Path]


def sample(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["sample", *map(str, arguments)])


def first_run(small_runs: Runs) -> tuple[Config, PipelineFiles, list[Model]]:
    config = load_config(small_runs[0] / "config.yaml")
    pipeline = check_pipeline(config)
    joint, models = fit_models(config, pipeline, find_sources([str(small_runs[0])]), "--lora")
    return joint, pipeline, models


@pytest.fixture(scope="module")
def drawings(small_runs: Runs) -> list[Drawing]:
    joint, pipeline, models = first_run(small_runs)
    judge = Judge(joint.reward.scorer, ())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policies, "read_pipeline", lambda *_, **__: pytest.fail("the pipeline has been read already"))
        return draw(
            joint, pipeline, models, ["a cat", "a hen"], 3, chains=True, judge=judge, progress=lambda done, total: None
        )


def test_pictures_are_those_of_the_sampler_with_the_same_seeds(small_runs: Runs, drawings: list[Drawing]) -> None:
    joint, _, models = first_run(small_runs)
    rendered = build_sampler(joint).render(RenderUnit(("a cat",) * 3, (0, 1, 2), 1), models[1].weights)
    (ours,) = [d for d in drawings if (d.prompt, d.model) == ("a cat", "first")]
    assert np.array_equal(ours.pictures, rendered.images)


def test_every_model_draws_every_prompt_and_tuning_changes_the_picture(drawings: list[Drawing]) -> None:
    assert [(d.model, d.prompt) for d in drawings] == [
        ("base", "a cat"), ("base", "a hen"), ("first", "a cat"), ("first", "a hen")]  # fmt: skip
    assert not np.array_equal(drawings[0].pictures, drawings[2].pictures)
    assert not np.array_equal(drawings[0].pictures[0], drawings[0].pictures[1])


def test_the_chain_ends_at_the_finished_picture(drawings: list[Drawing]) -> None:
    for drawing in drawings:
        assert drawing.chain.shape == (4, *drawing.pictures.shape[1:])
        steps = distances(drawing)
        assert steps[-1] < 0.02 < steps[0]
        assert steps[-1] == min(steps)


def test_the_judge_sees_every_prediction_and_the_finished_picture(small_runs: Runs, drawings: list[Drawing]) -> None:
    joint, pipeline, models = first_run(small_runs)
    scorer = build_scorer(joint.reward.scorer)
    for drawing in drawings:
        assert drawing.scores.shape == (5,)
        seen = np.concatenate([drawing.chain, drawing.pictures[:1]])  # of four steps, all are shown
        np.testing.assert_allclose(drawing.scores, scorer.score(seen, [drawing.prompt] * 5), atol=1e-5)
    (alone,) = draw(joint, pipeline, models[1:], ["a hen"], 3, chains=True, progress=lambda done, total: None)
    assert alone.scores.size == 0
    assert np.array_equal(alone.chain, drawings[3].chain)


def test_a_portrait_is_drawn_as_the_sampler_draws_it(small_runs: Runs) -> None:
    joint, pipeline, models = first_run(small_runs)
    joint = joint.model_copy(update={"sampler": joint.sampler.model_copy(update={"latent_size": (12, 8)})})
    (ours,) = draw(joint, pipeline, models[1:], ["a cat"], 2, chains=True, progress=lambda done, total: None)
    rendered = build_sampler(joint).render(RenderUnit(("a cat",) * 2, (0, 1), 1), models[1].weights)
    assert ours.pictures.shape == (2, 24, 16, 3)
    assert ours.chain.shape == (4, 24, 16, 3)
    assert np.array_equal(ours.pictures, rendered.images)


def test_a_long_chain_is_shown_at_its_ends_and_evenly_between(small_runs: Runs) -> None:
    assert shown_steps(load_config(small_runs[0] / "config.yaml")) == [0, 1, 2, 3]
    long = shown_steps(load_config(preset="single-prompt"))
    assert (long[0], long[-1], len(long)) == (0, 49, 12)
    assert set(np.diff(long)) <= {4, 5}


def test_a_grid_of_both_and_a_strip(small_runs: Runs, tmp_path: Path) -> None:
    arguments = ("a cat", "a hen", "--lora", small_runs[0], "--lora", small_runs[1], "--images", "2", "--trajectory")
    result = sample(*arguments, "--base", "--out", tmp_path / "one.png")
    assert result.exit_code == 0, result.output
    assert f"pictures    {tmp_path}/one.png" in result.output
    assert "second: a hen: 0: 0." in result.output
    assert sample(*arguments, "--out", tmp_path / "two.png").exit_code == 0
    with Image.open(tmp_path / "one.png") as with_base, Image.open(tmp_path / "two.png") as without:
        assert with_base.width / without.width == pytest.approx(3 / 2, rel=0.03)
        assert with_base.height == without.height
    with Image.open(tmp_path / "one-trajectory.png") as strip, Image.open(tmp_path / "one.png") as grid:
        assert strip.height > 2.5 * grid.height  # a row a prompt and model
        assert strip.width == pytest.approx(5 / 6 * grid.width, rel=0.1)  # 4 steps and the end, of 3 x 2 pictures


def test_where_the_score_settles_is_framed_labelled_printed_and_in_a_file(small_runs: Runs, tmp_path: Path) -> None:
    result = sample(
        "a cat",
        "a hen",
        "--lora",
        small_runs[0],
        "--base",
        "--images",
        "1",
        "--trajectory",
        "--out",
        tmp_path / "a.png",
    )
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "a-trajectory.json").read_text("utf-8"))
    assert (found["judge"], found["rule"], found["shown_steps"]) == ("clip", RULE, [0, 1, 2, 3])
    grid = read_grid(tmp_path / "a-trajectory.png")
    pixels = np.asarray(Image.open(tmp_path / "a-trajectory.png").convert("RGB"), dtype=int)
    size = grid.images.shape[2] * 8  # a picture of 16 pixels is shown with 128
    for row, chain in enumerate(found["chains"]):
        scores = np.float32([*chain["scores"], chain["finished"]])
        assert len(scores) == 5
        settled = settled_at(scores)
        assert chain["settled_at"] == settled
        assert grid.prompts[row] == f"{chain['model']}: {chain['prompt']} (settled at t = {settled})"
        assert f"{chain['model']}: {chain['prompt']}: 0: {scores[0]:.3f}, " in result.output
        assert f"finished: {scores[-1]:.3f}; settled at t = {settled}" in result.output
        top = LABEL + row * (size + GAP + LABEL) + LABEL
        line = pixels[top - FRAME + 1]  # above the pictures, where the frames are
        red = np.flatnonzero((line[:, 0] > 200) & (line[:, 1] < 50))
        assert len(red) == size + 2 * FRAME
        assert (red[0] - GAP + FRAME) // (size + 5 * GAP) == settled  # a title a column
    assert "first, 2 prompts: settled at t = " in result.output
    assert "base, 2 prompts: settled at t = " in result.output


def test_a_judge_may_be_another_one_or_none(small_runs: Runs, tmp_path: Path) -> None:
    common = ("--lora", small_runs[0], "--images", "1", "--trajectory")
    other = ("--scorer", '{kind: callable, name: oracle, target: "raydense.tiny.oracle:score"}')
    result = sample("a red circle above a blue square", *common, *other, "--out", tmp_path / "a.png")
    assert result.exit_code == 0, result.output
    assert "oracle of x̂0, by step; settled: " in result.output
    assert json.loads((tmp_path / "a-trajectory.json").read_text("utf-8"))["judge"] == "oracle"
    result = sample("a cat", *common, "--scorer", "none", "--out", tmp_path / "b.png")
    assert result.exit_code == 0, result.output
    assert "settled" not in result.output
    assert not (tmp_path / "b-trajectory.json").exists()


def test_pictures_whose_judge_fails_are_kept(small_runs: Runs, tmp_path: Path) -> None:
    prompts = ("a red circle above a blue square", "a cat")  # which is none of the oracle's scenes
    oracle = '{kind: callable, name: oracle, target: "raydense.tiny.oracle:score"}'
    failed = sample(*prompts, "--lora", small_runs[0], "--images", "1", "--trajectory", "--scorer", oracle,
                    "--out", tmp_path / "c.png")  # fmt: skip
    assert (failed.exit_code, failed.stderr.count("\n")) == (1, 1)
    assert "scorer oracle failed on the prompt 'a cat'" in failed.stderr
    assert "settled" not in failed.output
    assert {path.name for path in tmp_path.iterdir()} == {"c.png", "c-trajectory.png"}
    assert read_grid(tmp_path / "c.png").prompts == prompts
    assert read_grid(tmp_path / "c-trajectory.png").prompts == tuple(f"first: {prompt}" for prompt in prompts)


def test_a_mixture_of_z_scores_is_a_runs_own(small_runs: Runs, tmp_path: Path) -> None:
    config = load_config(small_runs[0] / "config.yaml")
    component = {"weight": 2.0, "scorer": config.reward.scorer.model_dump()}
    values = {"scorer": {"kind": "mixture", "name": "both", "normalise": "zscore", "components": [component]}}
    reward = RewardConfig.model_validate(values)
    (source,) = find_sources([str(small_runs[0])])
    with pytest.raises(ConfigError, match="both is of z-scores, which are a run's own; draw a run that was trained"):
        judge_scales(reward.scorer, [source])
    (tmp_path / NORMALISATION).write_text('{"0": {"clip": {"mean": 0.5, "std": 0.25}}}')
    mixed = replace(source, run=tmp_path, config=config.model_copy(update={"reward": reward}))
    scales = judge_scales(reward.scorer, [mixed])
    assert scales == (("clip", 0.5, 0.25),)
    pictures = np.random.default_rng(0).integers(0, 255, (3, 16, 16, 3), np.uint8)
    plain, scaled = (Judge(c, s) for c, s in ((config.reward.scorer, ()), (reward.scorer, scales)))
    np.testing.assert_allclose(scaled(pictures, "a cat"), 2 * (plain(pictures, "a cat") - 0.5) / 0.25, rtol=1e-5)


def test_the_embedded_model_needs_nothing_but_a_prompt(tmp_path: Path) -> None:
    result = sample("a red circle", "--base", "--images", "1", "--seed", "5", "--out", tmp_path / "a.png")
    assert result.exit_code == 0, result.output
    other = ("--images", "1", "--seed", "6", "--trajectory", "--out", tmp_path / "b.jpg")
    assert sample("a red circle", "--base", *other).exit_code == 0
    with Image.open(tmp_path / "a.png") as first, Image.open(tmp_path / "b.jpg") as second:
        assert (first.format, second.format) == ("PNG", "JPEG")
        assert first.size == second.size
        assert np.abs(np.asarray(first, dtype=int) - np.asarray(second.convert("RGB"), dtype=int)).max() > 100
    with Image.open(tmp_path / "b-trajectory.jpg") as strip:
        assert strip.format == "JPEG"


def test_bad_input_is_one_line(small_runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "there.png").write_bytes(b"mine")
    for arguments, said in (
        ((), "nothing to draw: give --lora, --base or both"),
        (("--lora", "/absent"), "/absent is not there; give a run's directory or a LoRA file"),
        (
            ("--base", "--out", "x.gif"),
            "--out=x.gif does not say what to write; give a name that ends in .png, .jp",
        ),
        (("--base", "--out", "x"), "--out=x does not say what to write"),
        (("--base", "--out", tmp_path / "there.png"), "is there already and is never overwritten"),
        (("--base", "--out", tmp_path / "there.png" / "x.png"), "x.png cannot be written (File exists)"),
        (("--base", "--set", "train.lr=1"), "a drawing may change only seed"),
        (("--base", "--scorer", "hpsv2"), "--scorer=hpsv2 judges the predicted pictures; add --trajectory"),
        (("--base", "--trajectory", "--scorer", "tailor"), "--scorer 'tailor': "),
        (
            ("--base", "--trajectory", "--scorer", "{kind: clip, name: c, model: /absent}"),
            "scorer c: model=/absent",
        ),
    ):
        result = sample("a cat", *arguments)
        assert result.exit_code == 2
        assert said in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert (tmp_path / "there.png").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("scores", "step"),
    [
        ([0.0, 0.5, 1.0, 1.0, 1.0], 2),
        ([0.0, 0.5, 0.91, 1.0, 1.0], 2),  # within a tenth of the range
        ([0.0, 0.5, 0.89, 1.0, 1.0], 3),
        ([0.0, 1.0, 0.2, 0.95, 1.0], 3),  # what it reaches and leaves again counts for nothing
        ([2.0, 1.0, 0.05, 0.1, 0.0], 2),  # a score may fall along the chain
        ([0.0, 0.9, 0.1, 0.2, 1.0], 4),  # T: the finished picture alone
        ([0.3, 0.3, 0.3, 0.3, 0.3], 0),
        ([-20.0, -15.0, -10.5, -10.0, -10.0], 2),  # whatever scale and zero a judge has
        ([0.5, 0.7], 1),
    ],
)
def test_it_settles_where_it_no_longer_leaves(scores: list[float], step: int) -> None:
    assert settled_at(np.float32(scores)) == step
