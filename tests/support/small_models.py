"""Small random models in the real formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def write_tokenizer(directory: Path, pad: str | None = None) -> Any:
    """A CLIPTokenizer of single letters and 12 tokens; pad: a token of its own, the first, to pad with."""
    from transformers import CLIPTokenizer

    directory.mkdir(parents=True, exist_ok=True)
    own = {"pad_token": pad} if pad else {}
    tokens = [*own.values(), *ALPHABET, *(f"{c}</w>" for c in ALPHABET), "<|startoftext|>", "<|endoftext|>"]
    (directory / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    files = str(directory / "vocab.json"), str(directory / "merges.txt")
    tokenizer = CLIPTokenizer(*files, model_max_length=12, **own)
    tokenizer.save_pretrained(directory)
    return tokenizer


def text_config(vocab: int) -> dict[str, int]:
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


def write_pipeline(directory: Path, prediction_type: str = "epsilon", *, like_2: bool = False) -> Path:
    """A StableDiffusionPipeline directory with SD1.5's classes and schedule, random weights, 8 x 8 latents.

    like_2: with what Stable Diffusion 2 changed: another text activation, linear projections, heads by block.
    """
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from sd15_files import SCHEDULER
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = write_tokenizer(directory / "tokenizer")
        text: dict[str, Any] = {**text_config(len(tokenizer)), **({"hidden_act": "gelu"} if like_2 else {})}
        CLIPTextModel(CLIPTextConfig(**text)).save_pretrained(directory / "text_encoder")
        UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=(2, 4) if like_2 else 4,
            use_linear_projection=like_2,
            norm_num_groups=4,
        ).save_pretrained(directory / "unet")
        AutoencoderKL(block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
                      up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4,
                      sample_size=16).save_pretrained(directory / "vae")  # fmt: skip
    DDIMScheduler(**SCHEDULER, prediction_type=prediction_type).save_pretrained(directory / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
    }
    (directory / "model_index.json").write_text(json.dumps(index))
    return directory


def write_scorer(directory: Path) -> Path:
    """A random CLIPModel with its processor."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    with torch.random.fork_rng():
        torch.manual_seed(1)
        tokenizer = write_tokenizer(directory)
        vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                  "image_size": 16, "patch_size": 8}  # fmt: skip
        text = text_config(len(tokenizer))
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(directory)
    size = {"height": 16, "width": 16}
    processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size)
    CLIPProcessor(image_processor=processor, tokenizer=tokenizer).save_pretrained(directory)
    return directory
