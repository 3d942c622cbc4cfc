"""Configurations of the tiny diffusion model and of its scorer: Stable Diffusion 1.5's classes, made small."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from raydense.tiny.scenes import COLOURS, IMAGE_SIZE, RELATIONS, SHAPES

MAX_TOKENS = 16
TEXT_WIDTH = 64
LATENT_CHANNELS = 4
LATENT_SIZE = IMAGE_SIZE // 8

_BOS, _EOS = "<|startoftext|>", "<|endoftext|>"
_WORDS = sorted({"a", "an", *COLOURS, *SHAPES, *" ".join(RELATIONS).split()})
_IMAGE_MEAN = (0.5, 0.5, 0.5)


def build_tokenizer() -> Any:
    """A CLIPTokenizer in which every caption word is one token; other ASCII words split into characters."""
    merges = _merges_for(_WORDS)
    characters = string.ascii_lowercase + string.digits + string.punctuation
    tokens = [*characters, *(f"{c}</w>" for c in characters), *("".join(pair) for pair in merges), _BOS, _EOS]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=merges,
        model_max_length=MAX_TOKENS,
    )


def _merges_for(words: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, in rank order, that join each word's characters into one token."""
    merges: list[tuple[str, str]] = []
    for word in words:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        for pair in merges:
            pieces = _apply_merge(pieces, pair)
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            merges.append(pair)
            pieces = _apply_merge(pieces, pair)
    return merges


def _apply_merge(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in pieces:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def save_bpe_files(tokenizer: Any, folder: Path) -> None:
    """Writes vocab.json and merges.txt beside tokenizer.json, as Stable Diffusion 1.5 has them."""
    merges = ["#version: 0.2", *(" ".join(pair) for pair in _merges_for(_WORDS))]
    (folder / "vocab.json").write_text(json.dumps(tokenizer.get_vocab(), sort_keys=True), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")


def tokenize(tokenizer: Any, captions: Sequence[str]) -> Tensor:
    """int64 [B, 16] token ids, padded as StableDiffusionPipeline pads them."""
    encoded = tokenizer(
        list(captions), padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    )
    ids: Tensor = encoded.input_ids
    return ids


def build_vae(seed: int) -> Any:
    """AutoencoderKL: [B, 3, 64, 64] in [-1, 1] to and from [B, 4, 8, 8] latents."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
    )


def build_unet(seed: int) -> Any:
    """UNet2DConditionModel on [B, 4, 8, 8] latents, cross-attending to [B, 16, 64] caption states."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def build_text_encoder(tokenizer: Any, seed: int) -> Any:
    """CLIPTextModel: int64 [B, 16] token ids to float32 [B, 16, 64] states."""
    torch.manual_seed(seed)
    return CLIPTextModel(CLIPTextConfig(**text_settings(tokenizer, layers=2)))


def build_scheduler() -> Any:
    """DDIMScheduler with the noise schedule of Stable Diffusion 1.5."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
        prediction_type="epsilon",
    )


def build_pipeline(vae: Any, unet: Any, text_encoder: Any, tokenizer: Any) -> Any:
    """The parts as one StableDiffusionPipeline without a safety checker."""
    return StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def build_clip(tokenizer: Any, seed: int) -> Any:
    """CLIPModel that embeds [B, 3, 64, 64] images and captions of 16 tokens into 64 dimensions."""
    torch.manual_seed(seed)
    config = CLIPConfig(
        text_config=CLIPTextConfig(**text_settings(tokenizer, layers=2)).to_dict(),
        vision_config=CLIPVisionConfig(
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=IMAGE_SIZE,
            patch_size=8,
        ).to_dict(),
        projection_dim=TEXT_WIDTH,
        logit_scale_init_value=2.6592,
    )
    return CLIPModel(config)


def build_processor(tokenizer: Any) -> Any:
    """CLIPProcessor that takes 64 x 64 images as they are, scaled to [-1, 1]."""
    images = CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=list(_IMAGE_MEAN),
        image_std=list(_IMAGE_MEAN),
    )
    return CLIPProcessor(image_processor=images, tokenizer=tokenizer)


def text_settings(tokenizer: Any, layers: int) -> dict[str, Any]:
    """What every CLIPTextConfig here says: captions of 16 tokens, states and projections of 64."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 4 * TEXT_WIDTH,
        "projection_dim": TEXT_WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
