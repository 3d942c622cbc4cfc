"""`raydense sample`: base and tuned pictures of the same noise, and the chain of predictions that led to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from raydense.cli import app
from raydense.config import Config, load_config
from raydense.core.types import RenderUnit
from raydense.evaluation.candidates import Model, find_sources, fit_models
from raydense.evaluation.sample import Drawing, distances, draw, shown_steps
from raydense.pipelines.pipeline_files import PipelineFiles
from raydense.planning.preflight import check_pipeline
from raydense.wiring import policies
from raydense.wiring.roles import build_sampler

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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policies, "read_pipeline", lambda *_, **__: pytest.fail("the pipeline has been read already"))
        return draw(joint, pipeline, models, ["a cat", "a hen"], 3, chains=True, progress=lambda done, total: None)


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
    ):
        result = sample("a cat", *arguments)
        assert result.exit_code == 2
        assert said in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert (tmp_path / "there.png").read_bytes() == b"mine"
