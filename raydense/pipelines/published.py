"""What the files of well-known pipelines say, for planning where they are not on this machine.

By hub id: the pipeline's class, and of each part what differs from its class's defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Parts = Mapping[str, Mapping[str, Any]]

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
SD35_MEDIUM = "stabilityai/stable-diffusion-3.5-medium"
FLUX_DEV = "black-forest-labs/FLUX.1-dev"

_VAE: Mapping[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
}
_VAE_16: Mapping[str, Any] = {**_VAE, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
_CLIP_L: Mapping[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
}
_CLIP_G: Mapping[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}
_T5_XXL: Mapping[str, Any] = {
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_heads": 64,
    "num_layers": 24,
    "feed_forward_proj": "gated-gelu",
    "vocab_size": 32128,
}
_BETAS: Mapping[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "timestep_spacing": "leading",
}
_FLOW = "FlowMatchEulerDiscreteScheduler"

PUBLISHED: Mapping[str, tuple[str, Parts]] = {
    SD15: (
        "StableDiffusionPipeline",
        {"unet": {"sample_size": 64, "cross_attention_dim": 768}, "vae": _VAE, "text_encoder": _CLIP_L},
    ),
    SDXL: (
        "StableDiffusionXLPipeline",
        {
            "scheduler": {"_class_name": "EulerDiscreteScheduler", **_BETAS},
            "unet": {
                "sample_size": 128,
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                "block_out_channels": (320, 640, 1280),
                "cross_attention_dim": 2048,
                "transformer_layers_per_block": (1, 2, 10),
                "attention_head_dim": (5, 10, 20),
                "use_linear_projection": True,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
            },
            "vae": {**_VAE, "scaling_factor": 0.13025},
            "text_encoder": _CLIP_L,
            "text_encoder_2": _CLIP_G,
        },
    ),
    SD35_MEDIUM: (
        "StableDiffusion3Pipeline",
        {
            "scheduler": {"_class_name": _FLOW, "shift": 3.0},
            "transformer": {
                "sample_size": 128,
                "num_layers": 24,
                "num_attention_heads": 24,
                "attention_head_dim": 64,
                "joint_attention_dim": 4096,
                "caption_projection_dim": 1536,
                "pooled_projection_dim": 2048,
                "pos_embed_max_size": 384,
                "dual_attention_layers": tuple(range(13)),
                "qk_norm": "rms_norm",
            },
            "vae": {**_VAE_16, "scaling_factor": 1.5305, "shift_factor": 0.0609},
            "text_encoder": {**_CLIP_L, "projection_dim": 768},
            "text_encoder_2": _CLIP_G,
            "text_encoder_3": _T5_XXL,
        },
    ),
    FLUX_DEV: (
        "FluxPipeline",
        {
            "scheduler": {"_class_name": _FLOW, "use_dynamic_shifting": True, "shift": 3.0},
            "transformer": {
                "in_channels": 64,
                "num_layers": 19,
                "num_single_layers": 38,
                "num_attention_heads": 24,
                "attention_head_dim": 128,
                "joint_attention_dim": 4096,
                "pooled_projection_dim": 768,
                "guidance_embeds": True,
                "axes_dims_rope": (16, 56, 56),
            },
            "vae": {**_VAE_16, "scaling_factor": 0.3611, "shift_factor": 0.1159},
            "text_encoder": _CLIP_L,
            "text_encoder_2": _T5_XXL,
        },
    ),
}
