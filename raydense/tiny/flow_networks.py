"""Configuration of the tiny flow-matching model: Stable Diffusion 3's classes without T5, made small."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from raydense.tiny.networks import LATENT_CHANNELS, LATENT_SIZE, TEXT_WIDTH, text_settings

# Without T5 the pipeline appends this many zero tokens to a caption's, and the transformer attends to them: a picture
# is only right under the number that it was trained with, and the pipeline's default is 256.
MAX_SEQUENCE_LENGTH = 1

_HEADS, _HEAD_WIDTH = 4, 24


def build_transformer(seed: int) -> Any:
    """SD3Transformer2DModel on [B, 4, 8, 8] latents, [B, 17, 128] caption states and [B, 128] pooled ones."""
    torch.manual_seed(seed)
    return SD3Transformer2DModel(
        sample_size=LATENT_SIZE,
        patch_size=1,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=4,
        num_attention_heads=_HEADS,
        attention_head_dim=_HEAD_WIDTH,
        joint_attention_dim=2 * TEXT_WIDTH,
        caption_projection_dim=_HEADS * _HEAD_WIDTH,
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=LATENT_SIZE,
        qk_norm="rms_norm",
    )


def build_projecting_encoder(tokenizer: Any, seed: int) -> Any:
    """CLIPTextModelWithProjection: int64 [B, 16] token ids to [B, 16, 64] states and [B, 64] pooled ones."""
    torch.manual_seed(seed)
    return CLIPTextModelWithProjection(CLIPTextConfig(**text_settings(tokenizer, layers=2)))


def build_flow_pipeline(vae: Any, transformer: Any, text_encoders: Sequence[Any], tokenizer: Any) -> Any:
    """The parts as one StableDiffusion3Pipeline without T5; gives `vae` the shift that decoding asks for."""
    vae.register_to_config(shift_factor=0.0)
    return StableDiffusion3Pipeline(
        vae=vae,
        transformer=transformer,
        text_encoder=text_encoders[0],
        text_encoder_2=text_encoders[1],
        text_encoder_3=None,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        tokenizer_3=None,
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0),
    )
