"""The family of Stable Diffusion 1.x and 2.x: which pipelines `Policy` can run, told from their files alone.

What its networks are given is noisy latents, a timestep and one text encoder's states, and nothing else: a pipeline
that wants more, or whose parts are of different sizes, would die in a run's first unit or, worse, draw something else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from raydense.config import ConfigError
from raydense.pipelines.pipeline_files import Part, PipelineFiles

CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
OF_THE_UNET = {  # what a U-Net of this family leaves unset, and what it would want or be
    "class_embed_type": "it wants a class or a noise level",
    "num_class_embeds": "it wants a class or a noise level",
    "addition_embed_type": "it wants further embeddings, as Stable Diffusion XL's does",
    "encoder_hid_dim": "it wants other embeddings than a text encoder's states",
    "encoder_hid_dim_type": "it wants other embeddings than a text encoder's states",
    "time_cond_proj_dim": "it is distilled, and wants the guidance scale",
    "dual_cross_attention": "it wants an image beside the text",
}
OF_THE_VAE = {
    "shift_factor": "its latents are shifted, as Stable Diffusion 3's are",
    "latents_mean": "its latents are normalised by channel",
    "latents_std": "its latents are normalised by channel",
}
INPUTS = {  # channels beside 4 latents: whose they are
    7: ", as an upscaler's",
    8: ", as a picture editor's",
    9: ", as for inpainting",
}
POSITIONS, VOCABULARY = 77, 49408  # CLIP's, where a text encoder's file does not say


def check_parts(pipeline: PipelineFiles) -> None:
    """Raises: ConfigError in one line, with everything in the pipeline's files that this family cannot take."""
    if problems := [*_classes(pipeline), *_unet(pipeline), *_decoder(pipeline)]:
        raise ConfigError(
            f"policy.model={pipeline.model}: {'; '.join(problems)}; give a text-to-image pipeline of Stable Diffusion "
            "1.x or 2.x"
        )


def _classes(pipeline: PipelineFiles) -> Iterator[str]:
    """By model_index.json, and by what each part says of itself."""
    index, text = pipeline.index or {}, pipeline.text_encoder or {}
    own = {part: (getattr(pipeline, part) or {}).get("_class_name") for part in ("unet", "vae")}
    own["text_encoder"] = (text.get("architectures") or [None])[0]
    for part, known in CLASSES.items():
        entry = index.get(part)
        named = entry[1] if isinstance(entry, list) and len(entry) == 2 else None  # library and class
        for found in dict.fromkeys((named, own.get(part))):
            if found is not None and found not in known:
                yield f"its {part} is a {found}, not a {known[0]}"


def _unet(pipeline: PipelineFiles) -> Iterator[str]:
    unet, vae, text = pipeline.unet, pipeline.vae, pipeline.text_encoder
    if unet is None:
        return
    where, inputs, outputs = "unet/config.json: ", unet.get("in_channels", 4), unet.get("out_channels", 4)
    latents = inputs if vae is None else vae.get("latent_channels", 4)
    if inputs != latents:
        beside = INPUTS.get(inputs, "") if latents == 4 and isinstance(inputs, int) else ""
        yield f"{where}in_channels={inputs}{beside}, but the VAE's latent_channels={latents}"
    elif outputs != inputs:
        learned = ": it predicts a variance too" if outputs == 2 * inputs else ""
        yield f"{where}out_channels={outputs}, but in_channels={inputs}{learned}"
    if text is not None:
        wanted, width = unet.get("cross_attention_dim", 1280), text.get("hidden_size", 512)
        if wanted != width:
            yield f"{where}cross_attention_dim={wanted}, but the text encoder's hidden_size={width}"
    for reason, keys in _set_keys(unet, OF_THE_UNET).items():
        yield f"{where}{keys}: {reason}"


def _decoder(pipeline: PipelineFiles) -> Iterator[str]:
    if (vae := pipeline.vae) is None:
        return
    where, scale, channels = "vae/config.json: ", vae.get("scaling_factor", 1), vae.get("out_channels", 3)
    if channels != 3:
        yield f"{where}out_channels={channels}, but a picture has 3"
    if not scale:
        yield f"{where}scaling_factor={scale}, by which latents are divided"
    for reason, keys in _set_keys(vae, OF_THE_VAE).items():
        yield f"{where}{keys}: {reason}"


def _set_keys(part: Part, reasons: Mapping[str, str]) -> dict[str, str]:
    """What is set although it should not be, by reason: `key=value, …`."""
    found: dict[str, str] = {}
    for key, reason in reasons.items():
        if value := part.get(key):
            found[reason] = ", ".join(filter(None, (found.get(reason), f"{key}={value}")))
    return found


def token_count(text_encoder: Part, tokenizer: Part | None) -> int:
    """How many tokens of a prompt the text encoder reads: as its tokenizer says, and never more than its positions."""
    positions = int(text_encoder.get("max_position_embeddings", POSITIONS))
    return min(positions, int((tokenizer or {}).get("model_max_length") or positions))


def limit_tokens(tokenizer: Any, positions: int) -> None:
    """Sets the length that prompts are cut to, which transformers takes for boundless where no file says it."""
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions)


def latent_height_and_width(chosen: int | tuple[int, int] | None, sample_size: Any) -> tuple[int, int]:
    """Of the latents: as chosen, else the U-Net's own, which are square.

    Raises: ValueError if nothing is chosen and the U-Net's file names no single size.
    """
    if chosen is None and (isinstance(sample_size, bool) or not isinstance(sample_size, int) or sample_size < 1):
        pair = isinstance(sample_size, list | tuple) and len(sample_size) == 2
        example = list(sample_size) if pair else "64 or [96, 64] (height, width)"
        raise ValueError(
            f"unet/config.json: sample_size={sample_size} is not one size; set sampler.latent_size, such as {example}"
        )
    size = sample_size if chosen is None else chosen
    return (size, size) if isinstance(size, int) else size
