"""The shipped flow-matching model: its format, what it is conditioned on, how good it is, and its resumed training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from safetensors.torch import load_file
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from raydense.prompts.prompt_sets import read_prompts
from raydense.tiny import pretrain
from raydense.tiny.flow_networks import MAX_SEQUENCE_LENGTH
from raydense.tiny.networks import tokenize
from raydense.tiny.oracle import score
from raydense.tiny.train_flow import FlowSettings, caption_states, draw_images, train_flow
from raydense.tiny.train_unet import LatentBank

WEIGHTS = Path(pretrain.__file__).parent / "weights"
FLOW = WEIGHTS / "flow"
ENCODERS = ("text_encoder", "text_encoder_2")
ALIGN = read_prompts("pkg://raydense.tiny/prompts/align.txt")


@pytest.fixture(scope="module")
def pipeline() -> Any:
    # Diffusers asks to hear of a missing T5 from the caller too, whatever model_index.json says.
    loaded = StableDiffusion3Pipeline.from_pretrained(
        FLOW, torch_dtype=torch.float32, local_files_only=True, text_encoder_3=None, tokenizer_3=None
    )
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_it_has_stable_diffusion_3s_classes_without_t5(pipeline: Any) -> None:
    assert type(pipeline) is StableDiffusion3Pipeline
    assert type(pipeline.vae) is AutoencoderKL
    assert type(pipeline.transformer) is SD3Transformer2DModel
    assert {type(getattr(pipeline, name)) for name in ENCODERS} == {CLIPTextModelWithProjection}
    assert type(pipeline.tokenizer) is type(pipeline.tokenizer_2) is CLIPTokenizer
    assert pipeline.text_encoder_3 is pipeline.tokenizer_3 is None
    assert type(pipeline.scheduler) is FlowMatchEulerDiscreteScheduler
    assert (pipeline.scheduler.config.shift, pipeline.scheduler.config.num_train_timesteps) == (1.0, 1000)


def test_it_is_small(pipeline: Any) -> None:
    parts = {name: sum(p.numel() for p in getattr(pipeline, name).parameters()) for name in ("transformer", *ENCODERS)}
    assert parts == {"transformer": 1_305_796, "text_encoder": 117_248, "text_encoder_2": 117_248}
    assert sum(path.stat().st_size for path in FLOW.rglob("*") if path.is_file()) <= 6_000_000


def test_only_safetensors_in_half_precision_are_stored() -> None:
    assert {path.suffix for path in FLOW.rglob("*") if path.is_file()} == {".json", ".txt", ".safetensors"}
    stored = [tensor.dtype for path in FLOW.rglob("*.safetensors") for tensor in load_file(path).values()]
    assert len(stored) > 300 and {dtype for dtype in stored if dtype.is_floating_point} == {torch.float16}


def test_no_configuration_names_a_folder() -> None:
    configurations = [json.loads(path.read_text(encoding="utf-8")) for path in FLOW.rglob("*config.json")]
    assert len(configurations) == 7
    assert {config.get("_name_or_path", "") for config in configurations} <= {"", "raydense-tiny"}
    assert not [path for path in FLOW.rglob("*.json") if str(Path.home()) in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_text_encoders_have_the_names_that_every_transformers_reads(encoder: str) -> None:
    names = set(load_file(FLOW / encoder / "model.safetensors"))
    assert "text_projection.weight" in names and len(names) == 37
    assert all(name.startswith("text_model.") for name in names - {"text_projection.weight"})


def test_the_two_text_encoders_differ(pipeline: Any) -> None:
    first, second = (getattr(pipeline, name).text_projection.weight for name in ENCODERS)
    assert not torch.equal(first, second)


def test_the_autoencoder_is_the_u_nets_with_a_shift() -> None:
    folders = WEIGHTS / "pipeline" / "vae", FLOW / "vae"
    ours, theirs = (load_file(folder / "diffusion_pytorch_model.safetensors") for folder in folders)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    before, after = (json.loads((folder / "config.json").read_text(encoding="utf-8")) for folder in folders)
    assert after == before | {"shift_factor": 0.0}


@pytest.mark.parametrize("caption", [ALIGN[0], ""])
def test_training_conditions_on_what_the_pipeline_computes(pipeline: Any, caption: str) -> None:
    states, _, pooled, _ = pipeline.encode_prompt(
        [caption], None, None, do_classifier_free_guidance=False, max_sequence_length=MAX_SEQUENCE_LENGTH
    )
    ours = caption_states([getattr(pipeline, name) for name in ENCODERS], tokenize(pipeline.tokenizer, [caption]))
    assert states.shape == (1, 16 + MAX_SEQUENCE_LENGTH, 128) and pooled.shape == (1, 128)
    torch.testing.assert_close((states, pooled), ours, rtol=0, atol=0)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_pipeline_draws_finite_pictures(pipeline: Any, guidance: float) -> None:
    images = draw_with_the_pipeline(pipeline, ALIGN[:4], guidance)
    assert images.shape == (4, 64, 64, 3)
    assert np.isfinite(images).all() and images.std() > 0.1


def test_without_fresh_noise_our_chain_is_the_pipelines(pipeline: Any) -> None:
    theirs = draw_with_the_pipeline(pipeline, ALIGN[:1], guidance=1.0)
    ours = draw_images(pipeline, ALIGN[:1], seed=5, eta=0.0)
    assert np.abs(ours / 255.0 - theirs).max() < 2.5e-3  # ours are rounded to a level of 255


def draw_with_the_pipeline(pipeline: Any, captions: Sequence[str], guidance: float) -> Any:
    return pipeline(
        list(captions),
        num_inference_steps=10,
        guidance_scale=guidance,
        max_sequence_length=MAX_SEQUENCE_LENGTH,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    ).images


def test_the_base_model_leaves_something_to_align(pipeline: Any) -> None:
    captions = ALIGN * 2
    assert 0.12 <= score(draw_images(pipeline, captions, seed=0), captions).mean() <= 0.5


def train_briefly(folder: Path, resume: bool, stop_at: int | None) -> bytes:
    """Two steps at a miniature size; returns the bytes of all resulting weights."""
    generator = torch.Generator().manual_seed(0)
    bank = LatentBank(torch.randn(3, 2, 4, 8, 8, generator=generator), torch.randint(9, (4, 16), generator=generator))
    settings = FlowSettings(steps=2, batch=4)
    models = train_flow(bank, folder, seed=0, settings=settings, resume=resume, stop_at=stop_at)
    return b"".join(tensor.numpy().tobytes() for model in models for tensor in model.state_dict().values())


def test_interrupted_pretraining_ends_in_the_same_bytes(tmp_path: Path) -> None:
    whole = train_briefly(tmp_path / "whole", resume=False, stop_at=None)
    halfway = train_briefly(tmp_path / "parts", resume=False, stop_at=1)
    finished = train_briefly(tmp_path / "parts", resume=True, stop_at=None)
    assert whole == finished
    assert whole != halfway
