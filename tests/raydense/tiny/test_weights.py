"""The shipped weights: what they are, how good they are, and that pre-training can be resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPProcessor, CLIPTextModel, CLIPTokenizer

import raydense.tiny.scenes
from raydense.tiny.oracle import score
from raydense.tiny.renderings import decode, encode, render_bank
from raydense.tiny.scenes import parse, render_batch, split_captions
from raydense.tiny.train_scorer import ScorerBank, ScorerSettings, cosine_scores, swapped, train_scorer
from raydense.tiny.train_unet import LatentBank, UnetSettings, fully_right_share, train_unet
from raydense.tiny.train_vae import VaeSettings, train_vae

WEIGHTS = Path(raydense.tiny.scenes.__file__).parent / "weights"
TRAIN, UNSEEN = split_captions()


@pytest.fixture(scope="module")
def pipeline() -> Any:
    loaded = StableDiffusionPipeline.from_pretrained(
        WEIGHTS / "pipeline", torch_dtype=torch.float32, safety_checker=None, local_files_only=True
    )
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def scorer() -> tuple[Any, Any]:
    model = CLIPModel.from_pretrained(WEIGHTS / "scorer", dtype=torch.float32, local_files_only=True)
    return model.eval(), CLIPProcessor.from_pretrained(WEIGHTS / "scorer", local_files_only=True)


def test_all_weights_take_at_most_12_megabytes() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) <= 12_000_000


def test_tensors_are_stored_in_half_precision() -> None:
    stored = [tensor.dtype for path in WEIGHTS.rglob("*.safetensors") for tensor in load_file(path).values()]
    assert len(stored) > 400 and {dtype for dtype in stored if dtype.is_floating_point} == {torch.float16}


def test_the_text_encoder_has_the_names_that_every_transformers_reads() -> None:
    names = load_file(WEIGHTS / "pipeline" / "text_encoder" / "model.safetensors")
    assert names and all(name.startswith("text_model.") for name in names)  # transformers 4 knows no others


def test_the_pipeline_has_stable_diffusions_classes(pipeline: Any) -> None:
    assert type(pipeline) is StableDiffusionPipeline
    assert type(pipeline.vae) is AutoencoderKL
    assert type(pipeline.unet) is UNet2DConditionModel
    assert type(pipeline.text_encoder) is CLIPTextModel
    assert type(pipeline.tokenizer) is CLIPTokenizer
    assert type(pipeline.scheduler) is DDIMScheduler
    assert pipeline.safety_checker is None


def test_the_schedule_is_that_of_stable_diffusion_1_5(pipeline: Any) -> None:
    expected = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "prediction_type": "epsilon",
    }
    assert {key: pipeline.scheduler.config[key] for key in expected} == expected


def test_caption_words_are_single_tokens_and_other_words_still_tokenise(pipeline: Any) -> None:
    tokens = pipeline.tokenizer("a yellow triangle left of a purple circle").input_ids
    assert len(tokens) == 8 + 2
    spelled = pipeline.tokenizer.convert_ids_to_tokens(pipeline.tokenizer("dog").input_ids)
    assert spelled == ["<|startoftext|>", "d", "o", "g</w>", "<|endoftext|>"]


def test_the_autoencoder_keeps_scenes_right(pipeline: Any) -> None:
    captions = [*TRAIN[::10], *UNSEEN]
    rebuilt = decode(pipeline.vae, encode(pipeline.vae, render_batch(captions, range(len(captions)))))
    assert score(rebuilt, captions).mean() >= 0.97


def test_the_base_model_leaves_something_to_align(pipeline: Any) -> None:
    assert 0.15 <= fully_right_share(pipeline, list(TRAIN[::5]), seed=0) <= 0.5


def test_the_scorer_prefers_the_true_caption_to_swapped_ones_on_unseen_prompts(scorer: tuple[Any, Any]) -> None:
    pairs = [(caption, wrong.caption) for caption in UNSEEN for wrong in swapped(parse(caption))]
    images = render_batch([true for true, _ in pairs], range(len(pairs)))
    true_scores = cosine_scores(*scorer, images, [true for true, _ in pairs])
    wrong_scores = cosine_scores(*scorer, images, [wrong for _, wrong in pairs])
    assert (true_scores > wrong_scores).mean() >= 0.95


def test_the_scorer_prefers_the_true_image_to_swapped_ones_on_unseen_prompts(scorer: tuple[Any, Any]) -> None:
    pairs = [(caption, wrong.caption) for caption in UNSEEN for wrong in swapped(parse(caption))]
    prompts = [true for true, _ in pairs]
    true_scores = cosine_scores(*scorer, render_batch(prompts, range(len(pairs))), prompts)
    wrong_images = render_batch([wrong for _, wrong in pairs], range(len(pairs)))
    assert (true_scores > cosine_scores(*scorer, wrong_images, prompts)).mean() >= 0.95


def _train_briefly(phase: str, folder: Path, resume: bool, stop_at: int | None) -> bytes:
    """Six steps of one phase at a miniature size; returns the bytes of all resulting weights."""
    generator = torch.Generator().manual_seed(0)
    if phase == "vae":
        drawings = render_bank(TRAIN[:4], 2, seed=0)
        vae_settings = VaeSettings(steps=6, batch=2)
        models = [train_vae(drawings, folder, seed=0, settings=vae_settings, resume=resume, stop_at=stop_at)]
    elif phase == "unet":
        latents = LatentBank(
            torch.randn(3, 2, 4, 8, 8, generator=generator), torch.randint(9, (4, 16), generator=generator)
        )
        unet_settings = UnetSettings(steps=6, batch=4)
        models = list(train_unet(latents, folder, seed=0, settings=unet_settings, resume=resume, stop_at=stop_at))
    else:
        images = np.random.default_rng(0).integers(0, 255, (3, 2, 64, 64, 3), dtype=np.uint8)
        misses = ((1,), (2,), (0,))
        tokens = torch.randint(9, (3, 16), generator=generator)
        tokens[:, -1] = 187
        bank = ScorerBank(images, tokens, misses, misses)
        scorer_settings = ScorerSettings(steps=6, families=2)
        models = [train_scorer(bank, folder, seed=0, settings=scorer_settings, resume=resume, stop_at=stop_at)]
    return b"".join(tensor.numpy().tobytes() for model in models for tensor in model.state_dict().values())


@pytest.mark.parametrize("phase", ["vae", "unet", "scorer"])
def test_interrupted_pretraining_ends_in_the_same_bytes(phase: str, tmp_path: Path) -> None:
    whole = _train_briefly(phase, tmp_path / "whole", resume=False, stop_at=None)
    halfway = _train_briefly(phase, tmp_path / "parts", resume=False, stop_at=3)
    finished = _train_briefly(phase, tmp_path / "parts", resume=True, stop_at=None)
    assert whole == finished
    assert whole != halfway
