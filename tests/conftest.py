"""Small random models in the real formats, made once a session, and configs on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from raydense.config import Config

ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def _write_tokenizer(directory: Path) -> Any:
    from transformers import CLIPTokenizer

    directory.mkdir(parents=True, exist_ok=True)
    tokens = [*ALPHABET, *(f"{c}</w>" for c in ALPHABET), "<|startoftext|>", "<|endoftext|>"]
    (directory / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(directory / "vocab.json"), str(directory / "merges.txt"), model_max_length=12)
    tokenizer.save_pretrained(directory)
    return tokenizer


def _text_config(vocab: int) -> dict[str, int]:
    return {
        "vocab_size": vocab,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 12,
        "bos_token_id": vocab - 2,
        "eos_token_id": vocab - 1,
        "pad_token_id": vocab - 1,
    }


def write_pipeline(directory: Path, prediction_type: str = "epsilon") -> Path:
    """A StableDiffusionPipeline directory with SD1.5's classes and schedule, random weights, 8 x 8 latents."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = _write_tokenizer(directory / "tokenizer")
        CLIPTextModel(CLIPTextConfig(**_text_config(len(tokenizer)))).save_pretrained(directory / "text_encoder")
        UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=4,
            norm_num_groups=4,
        ).save_pretrained(directory / "unet")
        AutoencoderKL(block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
                      up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4,
                      sample_size=16).save_pretrained(directory / "vae")  # fmt: skip
    DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    ).save_pretrained(directory / "scheduler")
    return directory


def write_scorer(directory: Path) -> Path:
    """A random CLIPModel with its processor."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    with torch.random.fork_rng():
        torch.manual_seed(1)
        tokenizer = _write_tokenizer(directory)
        vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                  "image_size": 16, "patch_size": 8}  # fmt: skip
        text = _text_config(len(tokenizer))
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(directory)
    size = {"height": 16, "width": 16}
    processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size)
    CLIPProcessor(image_processor=processor, tokenizer=tokenizer).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def pipeline_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipeline(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="session")
def scorer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scorer(tmp_path_factory.mktemp("scorer"))


@pytest.fixture(scope="session")
def small_values(pipeline_dir: Path, scorer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A whole configuration on the small random models, as plain values."""
    prompts = tmp_path_factory.mktemp("prompts")
    (prompts / "train.txt").write_text("a cat\na dog\na red fox\n")
    (prompts / "unseen.txt").write_text("a hen\na cow\n")
    return {
        "name": "small",
        "seed": 3,
        "policy": {"model": str(pipeline_dir), "lora_rank": 2},
        "prompts": {"train": str(prompts / "train.txt"), "unseen": str(prompts / "unseen.txt")},
        "reward": {"scorer": {"kind": "clip", "name": "clip", "model": str(scorer_dir)}},
        "steps": {"count": 4, "draws": 2},
        "sampler": {"trajectories": 4, "keep": 3, "unit_prompts": 2, "guidance_scale": 3.0},
        "samplers": {"count": 2, "num_cpus": 0.5},
        "stage": {"count": 2, "groups": 5, "steps": 3},
        "train": {"batch_groups": 4, "lr": 1e-2, "clip": 1e-2},
        "evaluate": {"prompts": 2, "images_per_prompt": 2, "grid_prompts": 2, "grid_images": 2},
    }


@pytest.fixture
def small_config(small_values: dict[str, Any]) -> Callable[..., Config]:
    """Builds the small configuration, with sections updated: small_config(train={"lr": 1e-3}, seed=4)."""

    def build(**updates: Any) -> Config:
        values = dict(small_values)
        for key, value in updates.items():
            values[key] = {**values[key], **value} if isinstance(value, dict) else value
        return Config.model_validate(values)

    return build
