"""Stable Diffusion XL, the base model: a U-Net as 1.x has, with two text encoders, a pooled embedding and sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from raydense.families.conditioning import Conditioning, each
from raydense.families.family import Family, Texts, decoder_problems
from raydense.families.stable_diffusion import OF_ANY_UNET, OF_THE_VAE, unet_latent_shape, unet_problems
from raydense.pipelines.pipeline_files import tokens_of

ENCODERS = ("text_encoder", "text_encoder_2")
TIME_IDS = 6  # height and width of the original, top and left of the crop, height and width of the target


class StableDiffusionXL(Family):
    """Penultimate states of two CLIPs, the second's pooled embedding, six sizes; DDIM; guidance in two halves."""

    advice = "a text-to-image pipeline of Stable Diffusion XL's base model"
    upcasts_decoder = True

    def problems(self) -> Iterator[str]:
        unet, widths = self.files["unet"], self._widths()
        yield from unet_problems(unet, self.files["vae"], OF_ANY_UNET)
        if unet is not None:
            where, kind = "unet/config.json: ", unet.get("addition_embed_type")
            if kind != "text_time":
                yield f"{where}addition_embed_type={kind}, but this kind's is text_time"
            elif widths is not None:
                states, pooled = widths
                if (wanted := unet.get("cross_attention_dim", 1280)) != states:
                    yield f"{where}cross_attention_dim={wanted}, but its text encoders' states have {states} together"
                given = TIME_IDS * (unet.get("addition_time_embed_dim") or 0) + pooled
                if (wanted := unet.get("projection_class_embeddings_input_dim")) != given:
                    yield (
                        f"{where}projection_class_embeddings_input_dim={wanted}, but {TIME_IDS} sizes and the pooled "
                        f"embedding make {given} (a refiner has five)"
                    )
        tokens = [tokens_of(self.files, part) for part in ENCODERS]
        if widths is not None and tokens[0] != tokens[1]:
            yield f"its text encoders read {tokens[0]} and {tokens[1]} tokens, whose states stand side by side"
        yield from decoder_problems(self.files["vae"], OF_THE_VAE)

    def _widths(self) -> tuple[int, int] | None:
        """Of both encoders' states together, and of the pooled embedding; None where a file is not known."""
        first, second = self.files["text_encoder"], self.files["text_encoder_2"]
        if first is None or second is None:
            return None
        states = int(first.get("hidden_size", 512)) + int(second.get("hidden_size", 512))
        return states, int(second.get("projection_dim", 512))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return unet_latent_shape(self.files["unet"] or {}, self._latent_size)

    @property
    def conditioning_shapes(self) -> Mapping[str, tuple[int, ...]]:
        states, pooled = self._widths() or (1024, 512)
        tokens = tokens_of(self.files, "text_encoder")
        return {"pooled_prompt_embeds": (pooled,), "prompt_embeds": (tokens, states), "time_ids": (TIME_IDS,)}

    def encode(self, texts: Texts, prompt: str) -> Conditioning:
        found = [texts[part](prompt, output_hidden_states=True) for part in ENCODERS]
        return {
            "pooled_prompt_embeds": found[1].text_embeds[0].float(),
            "prompt_embeds": torch.cat([output.hidden_states[-2][0].float() for output in found], dim=-1),
            "time_ids": self._time_ids().to(found[0][0].device),
        }

    def unconditional(self, texts: Texts) -> Conditioning:
        """Zeros, if the pipeline wants them in the place of a negative prompt that nobody gave; sizes stay."""
        empty = self.encode(texts, "")
        if not (self.files.index or {}).get("force_zeros_for_empty_prompt", True):
            return empty
        return {**each(empty, torch.zeros_like), "time_ids": empty["time_ids"]}

    def call(self, network: Any, x: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        beside = {"text_embeds": conditioning["pooled_prompt_embeds"], "time_ids": conditioning["time_ids"]}
        output: Tensor = network(x, times, conditioning["prompt_embeds"], added_cond_kwargs=beside).sample
        return output

    def _time_ids(self) -> Tensor:
        """A picture of the size that is drawn, not cropped."""
        blocks = (self.files["vae"] or {}).get("block_out_channels") or (0,) * 4
        size = [edge * 2 ** (len(blocks) - 1) for edge in self.latent_shape[1:]]
        return torch.tensor([*size, 0, 0, *size], dtype=torch.float32)
