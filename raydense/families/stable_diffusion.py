"""Stable Diffusion 1.x and 2.x.

What its networks are given is noisy latents, a timestep and one text encoder's states, and nothing else: a pipeline
that wants more, or whose parts are of different sizes, would die in a run's first unit or, worse, draw something else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from raydense.families.conditioning import Conditioning
from raydense.families.family import Family, Texts, decoder_problems, height_and_width, set_keys
from raydense.pipelines.pipeline_files import Part, tokens_of

OF_ANY_UNET = {  # what a U-Net here leaves unset, and what it would want or be
    "class_embed_type": "it wants a class or a noise level",
    "num_class_embeds": "it wants a class or a noise level",
    "encoder_hid_dim": "it wants other embeddings than a text encoder's states",
    "encoder_hid_dim_type": "it wants other embeddings than a text encoder's states",
    "time_cond_proj_dim": "it is distilled, and wants the guidance scale",
    "dual_cross_attention": "it wants an image beside the text",
}
OF_THE_UNET = {
    **OF_ANY_UNET,
    "addition_embed_type": "it wants further embeddings, as Stable Diffusion XL's does",
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


class StableDiffusion(Family):
    """One CLIP; DDIM; guidance in two halves."""

    advice = "a text-to-image pipeline of Stable Diffusion 1.x or 2.x"

    def problems(self) -> Iterator[str]:
        yield from unet_problems(self.files["unet"], self.files["vae"], OF_THE_UNET)
        unet, text = self.files["unet"], self.files["text_encoder"]
        if unet is not None and text is not None:
            wanted, width = unet.get("cross_attention_dim", 1280), text.get("hidden_size", 512)
            if wanted != width:
                where = "unet/config.json: "
                yield f"{where}cross_attention_dim={wanted}, but the text encoder's hidden_size={width}"
        yield from decoder_problems(self.files["vae"], OF_THE_VAE)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return unet_latent_shape(self.files["unet"] or {}, self._latent_size)

    @property
    def conditioning_shapes(self) -> Mapping[str, tuple[int, ...]]:
        width = int((self.files["text_encoder"] or {}).get("hidden_size", 512))
        return {"prompt_embeds": (tokens_of(self.files, "text_encoder"), width)}

    def encode(self, texts: Texts, prompt: str) -> Conditioning:
        return {"prompt_embeds": texts["text_encoder"](prompt)[0][0].float()}

    def call(self, network: Any, x: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        output: Tensor = network(x, times, conditioning["prompt_embeds"]).sample
        return output


def unet_latent_shape(unet: Part, chosen: int | tuple[int, int] | None) -> tuple[int, int, int]:
    """As `Family.latent_shape`."""
    size = height_and_width(chosen, unet.get("sample_size"), "unet/config.json")
    return (int(unet.get("in_channels", 4)), *size)


def unet_problems(unet: Part | None, vae: Part | None, unwanted: Mapping[str, str]) -> Iterator[str]:
    """Args: unwanted: keys that must be unset, with the reason."""
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
    for reason, keys in set_keys(unet, unwanted).items():
        yield f"{where}{keys}: {reason}"
