"""The CLIP scorer: the model's own cosine, whatever the batch, and each prompt's text computed once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPModel, CLIPProcessor

from raydense.config import ConfigError
from raydense.rewards.clip import ClipScorer, load_clip_scorer

PROMPTS = ["a cat", "a dog", "a cat", "a red fox", "a " + "b" * 40]


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 24, 24, 3), dtype=np.uint8)


def scorer(directory: Path, batch_size: int = 64) -> ClipScorer:
    return load_clip_scorer("clip", str(directory), batch_size=batch_size, device=torch.device("cpu"))


@torch.no_grad()
def test_the_score_is_the_cosine_of_clips_own_embeddings(scorer_dir: Path, images: np.ndarray) -> None:
    model, processor = CLIPModel.from_pretrained(scorer_dir), CLIPProcessor.from_pretrained(scorer_dir)
    expected = []
    for image, prompt in zip(images, PROMPTS, strict=True):
        inputs = processor(text=[prompt], images=[image], return_tensors="pt", truncation=True)
        output = model(**inputs)
        expected.append(float(torch.cosine_similarity(output.image_embeds, output.text_embeds)))
    scores = scorer(scorer_dir).score(images, PROMPTS)
    assert scores.dtype == np.float32
    assert scores.shape == (5,)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-6)


def test_a_tokenizer_without_a_length_is_cut_to_the_models_positions(
    scorer_dir: Path, images: np.ndarray, tmp_path: Path
) -> None:
    shutil.copytree(scorer_dir, tmp_path / "scorer")
    file = tmp_path / "scorer" / "tokenizer_config.json"
    values = json.loads(file.read_text("utf-8"))
    del values["model_max_length"]
    file.write_text(json.dumps(values), encoding="utf-8")
    assert np.array_equal(scorer(tmp_path / "scorer").score(images, PROMPTS), scorer(scorer_dir).score(images, PROMPTS))


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_the_batch_size_changes_only_the_speed(scorer_dir: Path, images: np.ndarray, batch_size: int) -> None:
    whole = scorer(scorer_dir).score(images, PROMPTS)
    np.testing.assert_allclose(scorer(scorer_dir, batch_size).score(images, PROMPTS), whole, rtol=1e-4, atol=1e-6)


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"scorer clip: model={tmp_path / 'absent'} is not a directory"):
        scorer(tmp_path / "absent")
