"""Small random pipelines of the other model families in the real formats: 8 x 8 latents, a VAE that doubles them.

Every input of their networks moves the output: all parameters are drawn anew, since a fresh network may begin with
gates, modulations and text states near zero, and a test would not see what it leaves out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from small_models import ALPHABET, text_config, write_tokenizer

if TYPE_CHECKING:
    import torch

Parts = Mapping[str, Any]

SDXL_SCHEDULER = {  # its own file's values, those of other schedulers' settings too
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}
SD3_SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
FLUX_SCHEDULER = {
    **SD3_SCHEDULER,
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "use_dynamic_shifting": True,
}
T5_WIDTH = 32  # more than both CLIPs together, as in the real models: SD3 fills the rest with zeros


def write_sdxl(directory: Path) -> Path:
    """A StableDiffusionXLPipeline directory with the base model's classes and schedule."""

    def parts() -> Parts:
        from diffusers import AutoencoderKL, UNet2DConditionModel

        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            attention_head_dim=(1, 2),
            cross_attention_dim=16 + 12,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=12 + 6 * 8,
            norm_num_groups=4,
        )
        return {
            **_clip(directory, "", width=16),
            **_clip(directory, "_2", width=12, projected=True, pad="!"),
            "unet": _redrawn(unet),
            "vae": _redrawn(AutoencoderKL(**_vae(4), scaling_factor=0.13025)),
        }

    empty = {"image_encoder": None, "feature_extractor": None}
    settings = {"force_zeros_for_empty_prompt": True}
    return _write(directory, "StableDiffusionXLPipeline", parts, SDXL_SCHEDULER, empty, settings)


def write_sd3(directory: Path, *, t5: bool = True) -> Path:
    """A StableDiffusion3Pipeline directory with Stable Diffusion 3.5-medium's classes and schedule.

    t5: with the third text encoder, which that pipeline may lack.
    """

    def parts() -> Parts:
        from diffusers import AutoencoderKL, SD3Transformer2DModel

        transformer = SD3Transformer2DModel(
            sample_size=8,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=T5_WIDTH,
            caption_projection_dim=16,
            pooled_projection_dim=16 + 12,
            pos_embed_max_size=12,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        )
        return {
            **_clip(directory, "", width=16, projected=True),
            **_clip(directory, "_2", width=12, projected=True, pad="!"),
            **(_t5(directory, "_3") if t5 else {"text_encoder_3": None, "tokenizer_3": None}),
            "transformer": _redrawn(transformer),
            "vae": _redrawn(AutoencoderKL(**_vae(16), scaling_factor=1.5305, shift_factor=0.0609)),
        }

    return _write(directory, "StableDiffusion3Pipeline", parts, SD3_SCHEDULER)


def write_flux(directory: Path) -> Path:
    """A FluxPipeline directory with FLUX.1-dev's classes and schedule."""

    def parts() -> Parts:
        from diffusers import AutoencoderKL, FluxTransformer2DModel

        transformer = FluxTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=T5_WIDTH,
            pooled_projection_dim=16,
            guidance_embeds=True,
            axes_dims_rope=(2, 2, 4),
        )
        return {
            **_clip(directory, "", width=16),
            **_t5(directory, "_2"),
            "transformer": _redrawn(transformer),
            "vae": _redrawn(AutoencoderKL(**_vae(16), scaling_factor=0.3611, shift_factor=0.1159)),
        }

    return _write(directory, "FluxPipeline", parts, FLUX_SCHEDULER)


def _write(
    directory: Path,
    pipeline: str,
    parts: Callable[[], Parts],
    scheduler: Mapping[str, Any],
    empty: Mapping[str, None] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Saves what parts makes, each in its folder, and the files that name it all."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = {**parts(), **(empty or {})}
    index: dict[str, Any] = {"_class_name": pipeline, **(settings or {})}
    for name, part in made.items():
        if part is not None:
            part.save_pretrained(directory / name)
        index[name] = _library_and_class(part)
    (directory / "scheduler").mkdir()
    (directory / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    (directory / "model_index.json").write_text(json.dumps(index))
    return directory


def _library_and_class(part: Any) -> list[str | None]:
    if part is None:
        return [None, None]
    name = type(part).__name__
    # transformers 5 has one T5 tokenizer class; published pipelines name the fast one, which it knows as an alias
    return [type(part).__module__.split(".")[0], "T5TokenizerFast" if name == "T5Tokenizer" else name]


def _clip(directory: Path, suffix: str, *, width: int, projected: bool = False, pad: str | None = None) -> Parts:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = write_tokenizer(directory / f"tokenizer{suffix}", pad)
    sizes = {"hidden_size": width, "projection_dim": width, "num_hidden_layers": 2}
    config = CLIPTextConfig(**{**text_config(len(tokenizer)), **sizes})
    model = CLIPTextModelWithProjection if projected else CLIPTextModel
    return {f"text_encoder{suffix}": _redrawn(model(config)), f"tokenizer{suffix}": tokenizer}


def _t5(directory: Path, suffix: str) -> Parts:
    from transformers import T5Config, T5EncoderModel

    tokenizer = _write_t5_tokenizer(directory / f"tokenizer{suffix}")
    config = T5Config(vocab_size=len(tokenizer), d_model=T5_WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
                      feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False)  # fmt: skip
    return {f"text_encoder{suffix}": _redrawn(T5EncoderModel(config)), f"tokenizer{suffix}": tokenizer}


def _write_t5_tokenizer(directory: Path) -> Any:
    """A T5 tokenizer of single letters, from the files that any version of transformers reads."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import T5TokenizerFast

    letters = [(f"{before}{c}", -3.0) for before in ("", "▁") for c in ALPHABET]
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    vocabulary = [*((token, 0.0) for token in special.values()), ("▁", -2.0), *letters]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single=["$A", "</s>"], special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(list(special.values()))
    directory.mkdir(parents=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {**special, "tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 512}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return T5TokenizerFast.from_pretrained(directory)


def _vae(channels: int) -> dict[str, Any]:
    """AutoencoderKL's settings; with 16 channels it has no quantisation layers, as in SD3 and FLUX."""
    return {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": channels,
        "norm_num_groups": 4,
        "sample_size": 16,
        "use_quant_conv": channels == 4,
        "use_post_quant_conv": channels == 4,
    }


def _redrawn(model: torch.nn.Module) -> torch.nn.Module:
    """The model with all its parameters random, none near zero, and outputs of order one."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
            else:
                parameter.normal_(0 if name.endswith("bias") else 1, 0.2)  # the others are scales of norms
    return model
