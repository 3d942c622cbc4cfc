"""Our ImageReward on transformers' BLIP gives the scores of the package's own modules, weight for weight.

See `make_imagereward.py`, which made `imagereward.json` in an environment of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from raydense.cli import app
from raydense.config import ConfigError
from raydense.rewards import imagereward
from raydense.rewards.imagereward import ImageRewardScorer, check_checkpoint, read_sizes, rename


def load_script() -> ModuleType:
    spec = spec_from_file_location("make_imagereward", Path(__file__).with_name("make_imagereward.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = load_script()
GOLDEN: dict[str, Any] = json.loads(SCRIPT.FILE.read_text())
PROMPTS: list[str] = SCRIPT.PROMPTS


def write_checkpoint(size: str, directory: Path) -> Path:
    """The seeded weights in the released file's format."""
    shapes = GOLDEN[size]["shapes"]
    state = {name: torch.from_numpy(array) for name, array in SCRIPT.state_arrays(shapes)}
    torch.save(state, directory / "ImageReward.pt")
    return directory / "ImageReward.pt"


def make_scorer(size: str, directory: Path, batch_size: int = 16) -> ImageRewardScorer:
    return ImageRewardScorer(
        "imagereward",
        checkpoint=str(write_checkpoint(size, directory)),
        tokenizer=str(SCRIPT.write_vocabulary(directory, size)),
        batch_size=batch_size,
        device=torch.device("cpu"),
    )


def all_scores(scorer: ImageRewardScorer) -> np.ndarray:
    """[prompts, pictures]; all prompts of one picture in one call."""
    columns = [scorer.score(np.stack([image] * len(PROMPTS)), PROMPTS) for image in SCRIPT.pictures()]
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("size", ["small", pytest.param("full", marks=pytest.mark.slow)])
def test_scores_of_the_package(size: str, tmp_path: Path) -> None:
    expected = np.array(GOLDEN[size]["scores"])
    assert expected.shape == (len(PROMPTS), len(SCRIPT.IMAGE_SIZES))
    assert min(np.ptp(expected, axis=0).min(), np.ptp(expected, axis=1).min()) > 0.01  # prompt and picture both matter
    np.testing.assert_allclose(all_scores(make_scorer(size, tmp_path)), expected, atol=2e-5)


def test_what_no_shape_shows_matters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer prompts or narrower heads would fit the checkpoint too, and change the scores far beyond the tolerance."""
    expected = np.array(GOLDEN["small"]["scores"])
    monkeypatch.setattr(imagereward, "TOKENS", 40)
    assert np.abs(all_scores(make_scorer("small", tmp_path)) - expected).max() > 1e-3
    monkeypatch.setattr(imagereward, "TOKENS", 35)
    monkeypatch.setattr(imagereward, "HEAD_WIDTH", 32)
    assert np.abs(all_scores(make_scorer("small", tmp_path)) - expected).max() > 1e-3


def test_the_full_size_is_read_off_the_checkpoints_shapes() -> None:
    state = {name: torch.empty(shape, device="meta") for name, shape in GOLDEN["full"]["shapes"].items()}
    vision, text = read_sizes(rename(state), "full")
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == (1024, 24, 16)
    assert (vision.image_size, vision.patch_size, vision.layer_norm_eps) == (224, 16, 1e-6)
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads) == (768, 12, 12)
    assert (text.encoder_hidden_size, text.intermediate_size, text.vocab_size) == (1024, 3072, 30524)


def test_the_batch_size_does_not_matter(tmp_path: Path) -> None:
    images, prompts = np.stack([SCRIPT.pictures()[0]] * 3), PROMPTS[:3]
    one, three = (make_scorer("small", tmp_path, batch_size=n).score(images, prompts) for n in (1, 3))
    assert one.dtype == np.float32
    np.testing.assert_allclose(one, three, atol=1e-5)


def test_another_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    make = lambda: ImageRewardScorer(  # noqa: E731
        "ir",
        checkpoint=str(path),
        tokenizer=str(SCRIPT.write_vocabulary(tmp_path, "small")),
        device=torch.device("cpu"),
    )
    torch.save({"mlp.layers.0.weight": torch.zeros(2)}, path)
    refuse(make, path, r"other\.pt: is no checkpoint of ImageReward \(vision\.")
    state = {name: torch.from_numpy(array) for name, array in SCRIPT.state_arrays(GOLDEN["small"]["shapes"])}
    torch.save({**state, "blip.extra": torch.zeros(1)}, path)
    refuse(make, path, r"does not fit the model; 1 surplus: blip\.extra")
    path.unlink()
    refuse(make, path, r"other\.pt: there is no such file")


def refuse(make: Callable[[], ImageRewardScorer], checkpoint: Path, said: str) -> None:
    """Before anything is loaded, and again where it is."""
    for attempt in (make, lambda: check_checkpoint("ir", str(checkpoint))):
        with pytest.raises(ConfigError, match=rf"^scorer ir: checkpoint=.*{said}"):
            attempt()


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    """transformers takes a directory without vocab.txt for an empty vocabulary, in which every word is unknown."""
    checkpoint, empty = str(write_checkpoint("small", tmp_path)), tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(
        ValueError, match=r"scorer ir: tokenizer=.*empty has \d+ tokens, .* trained with 21; give a dir"
    ):
        ImageRewardScorer("ir", checkpoint=checkpoint, tokenizer=str(empty), device=torch.device("cpu"))


def test_the_draws_are_functions_of_the_name() -> None:
    assert np.array_equal(SCRIPT.draw("a.weight", (2, 3)), SCRIPT.draw("a.weight", (2, 3)))
    assert not np.array_equal(SCRIPT.draw("a.weight", (2, 3)), SCRIPT.draw("b.weight", (2, 3)))


@pytest.mark.slow
def test_the_single_prompt_preset_runs_with_it(tmp_path: Path, pipeline_dir: Path) -> None:
    """METHOD §6's setting through the command line, ImageReward and all, on small networks and a small scale.

    plain: `test_scores_of_the_package`, without a run.
    """
    checkpoint, vocabulary = write_checkpoint("small", tmp_path), SCRIPT.write_vocabulary(tmp_path, "small")
    small = {
        "policy.model": pipeline_dir,
        "policy.revision": "null",
        "reward.scorer.checkpoint": checkpoint,
        "reward.scorer.tokenizer": vocabulary,
        "steps.count": 4,
        "sampler.latent_size": 8,
        "sampler.dtype": "float32",
        "stage": "{count: 2, groups: 4, steps: 2}",
        "evaluate": "{prompts: 1, images_per_prompt: 2}",
    }
    settings = [part for key, value in small.items() for part in ("--set", f"{key}={value}")]
    command = ["train", "--preset", "single-prompt", "--local", "--out", str(tmp_path / "run"), *settings]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows].count("stage") == 2
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert set(scores["train"]) == {"A cat and a dog."}
    assert all(np.isfinite(scores["unseen"]["A cat and a cup."]["imagereward"]["after"]))
