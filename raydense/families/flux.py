"""FLUX.1: a transformer that learned a flow, on packed latents, with guidance as an input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from raydense.families.conditioning import Conditioning
from raydense.families.family import Texts, decoder_problems, height_and_width
from raydense.families.flow_family import FlowFamily

CLIP, T5 = "text_encoder", "text_encoder_2"
AXES = 3  # of a token's place, each with numbers of its own in the rotary embedding
EDGE = 2  # latents of a packed token, along each axis
LATENT_EDGE = 128  # where none is chosen, as diffusers' pipeline has it


class Flux(FlowFamily):
    """The T5's states and the CLIP's pooled embedding; latents are stored as the VAE has them, and packed for a call.

    A density is the same for both, since packing only moves values.
    """

    advice = "a text-to-image pipeline of FLUX.1"
    exclude_last = 1  # the step without a density
    even_levels = True
    pooled_width, pipelines_t5_tokens = 768, 512
    halves = False

    def problems(self) -> Iterator[str]:
        transformer, vae = self.files["transformer"], self.files["vae"]
        if transformer is not None:
            where, channels = "transformer/config.json: ", transformer.get("in_channels", 64)
            packed = None if vae is None else EDGE * EDGE * vae.get("latent_channels", 4)
            if packed is not None and channels != packed:
                yield f"{where}in_channels={channels}, but the VAE's latents are {packed} once packed"
            if (outputs := transformer.get("out_channels")) not in (None, channels):
                yield f"{where}out_channels={outputs}, but in_channels={channels}"
            if (patch := transformer.get("patch_size", 1)) != 1:
                yield f"{where}patch_size={patch}, but latents come packed: it must be 1"
            axes, width = transformer.get("axes_dims_rope", (16, 56, 56)), transformer.get("attention_head_dim", 128)
            if len(axes) != AXES or any(axis % 2 for axis in axes) or sum(axes) != width:
                yield (
                    f"{where}axes_dims_rope={list(axes)} should be {AXES} even numbers, together "
                    f"attention_head_dim={width}"
                )
            yield from self._width_problems(where, transformer)
        if self._latent_size is not None and any(edge % EDGE for edge in self.latent_shape[1:]):
            yield f"sampler.latent_size={self._latent_size} cannot be packed: it takes even numbers"
        yield from decoder_problems(vae, {})

    def _width_problems(self, where: str, transformer: Mapping[str, Any]) -> Iterator[str]:
        for folder, key, own, setting, default in (
            (CLIP, "hidden_size", 512, "pooled_projection_dim", 768),
            (T5, "d_model", 512, "joint_attention_dim", 4096),
        ):
            part = self.files[folder]
            wanted = transformer.get(setting, default)
            if part is not None and (width := part.get(key, own)) != wanted:
                yield f"{where}{setting}={wanted}, but {folder}'s {key}={width}"

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        channels = int(self.transformer.get("in_channels", 64)) // EDGE**2
        return (channels, *height_and_width(self._latent_size, LATENT_EDGE, "transformer/config.json"))

    @property
    def tokens(self) -> int:
        return super().tokens // EDGE**2

    @property
    def takes_guidance(self) -> bool:
        """A distilled one may have no input for it."""
        return bool(self.transformer.get("guidance_embeds", not self.transformer))

    def encode(self, texts: Texts, prompt: str) -> Conditioning:
        pooled = texts[CLIP](prompt).pooler_output[0]
        states = texts[T5](prompt, self.t5_tokens)[0][0]
        states = states.to(pooled.device, self._stored)
        return {"pooled_prompt_embeds": pooled.to(self._stored), "prompt_embeds": states}

    def call(self, network: Any, x: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        count, channels, height, width = x.shape
        states, guidance = conditioning["prompt_embeds"], None
        if self.takes_guidance:
            guidance = torch.full((count,), self.guidance_scale, device=x.device)
        output: Tensor = network(
            hidden_states=_packed(x),
            timestep=times.to(x.dtype) / 1000,
            guidance=guidance,
            pooled_projections=conditioning["pooled_prompt_embeds"],
            encoder_hidden_states=states,
            txt_ids=states.new_zeros(states.shape[1], AXES),
            img_ids=_places(height // EDGE, width // EDGE, x),
            return_dict=False,
        )[0]
        return _unpacked(output, channels, height, width)


def _packed(x: Tensor) -> Tensor:
    """[N, C, H, W] → [N, H/2 · W/2, 4C], a token each 2 × 2 latents."""
    count, channels, height, width = x.shape
    squares = x.view(count, channels, height // EDGE, EDGE, width // EDGE, EDGE)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(count, -1, EDGE * EDGE * channels)


def _unpacked(tokens: Tensor, channels: int, height: int, width: int) -> Tensor:
    squares = tokens.view(len(tokens), height // EDGE, width // EDGE, channels, EDGE, EDGE)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), channels, height, width)


def _places(rows: int, columns: int, like: Tensor) -> Tensor:
    """Row and column of each token, for its rotary embedding: [rows · columns, AXES]."""
    places = like.new_zeros(rows, columns, AXES)
    places[..., 1] += torch.arange(rows, device=like.device)[:, None]
    places[..., 2] += torch.arange(columns, device=like.device)[None]
    return places.view(-1, 3)
