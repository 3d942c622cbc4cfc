"""Stable Diffusion 3 and 3.5: a transformer that learned a flow, with two CLIPs and, if wanted, a T5."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from raydense.families.conditioning import Conditioning
from raydense.families.family import Texts, decoder_problems, height_and_width
from raydense.families.flow_family import FlowFamily
from raydense.pipelines.pipeline_files import POSITIONS, tokens_of

T5 = "text_encoder_3"
CLIPS = ("text_encoder", "text_encoder_2")


class StableDiffusion3(FlowFamily):
    """States of both CLIPs side by side, then the T5's or zeros; both pooled embeddings; guidance in two halves."""

    advice = "a text-to-image pipeline of Stable Diffusion 3 or 3.5"
    exclude_last = 2  # a step without a density, and one whose mean moves 32 times σ with the network's output
    pooled_width, pipelines_t5_tokens = 2048, 256

    def problems(self) -> Iterator[str]:
        transformer, vae = self.files["transformer"], self.files["vae"]
        if transformer is not None:
            where, channels = "transformer/config.json: ", transformer.get("in_channels", 16)
            if vae is not None and channels != (latents := vae.get("latent_channels", 4)):
                yield f"{where}in_channels={channels}, but the VAE's latent_channels={latents}"
            if (outputs := transformer.get("out_channels", 16)) != channels:
                yield f"{where}out_channels={outputs}, but in_channels={channels}"
            heads, width = transformer.get("num_attention_heads", 18), transformer.get("attention_head_dim", 64)
            if (wanted := transformer.get("caption_projection_dim", 1152)) != heads * width:
                yield f"{where}caption_projection_dim={wanted}, but its {heads} heads of {width} make {heads * width}"
            yield from self._width_problems(where, transformer)
            yield from self._size_problems(where, transformer)
        yield from decoder_problems(vae, {})

    def _width_problems(self, where: str, transformer: Mapping[str, Any]) -> Iterator[str]:
        first, second, t5 = (self.files[part] for part in (*CLIPS, T5))
        joint = transformer.get("joint_attention_dim", 4096)
        if first is not None and second is not None:
            pooled = first.get("projection_dim", 512) + second.get("projection_dim", 512)
            if (wanted := transformer.get("pooled_projection_dim", 2048)) != pooled:
                yield f"{where}pooled_projection_dim={wanted}, but its CLIPs' embeddings have {pooled} together"
            if (states := first.get("hidden_size", 512) + second.get("hidden_size", 512)) > joint:
                yield f"{where}joint_attention_dim={joint}, but its CLIPs' states have {states} together"
            if (length := tokens_of(self.files, CLIPS[0])) > (
                places := second.get("max_position_embeddings", POSITIONS)
            ):
                yield (
                    f"{CLIPS[1]}/config.json: max_position_embeddings={places}, but it reads the {length} tokens that "
                    f"{CLIPS[0]} reads"
                )
        if t5 is not None and (width := t5.get("d_model", 512)) != joint:
            yield f"{where}joint_attention_dim={joint}, but the T5's d_model={width}"

    def _size_problems(self, where: str, transformer: Mapping[str, Any]) -> Iterator[str]:
        try:
            _, *edges = self.latent_shape
        except ValueError:  # there is none, which is said elsewhere
            return
        patch, places = transformer.get("patch_size", 2), transformer.get("pos_embed_max_size", 96)
        set_by = "sampler.latent_size" if self._latent_size is not None else f"{where}sample_size"
        shown = f"{set_by}={'x'.join(map(str, edges))}"
        if any(edge % patch for edge in edges):
            yield f"{shown} cannot be cut into patches: it takes multiples of {patch}"
        if max(edges) > patch * places:
            yield f"{shown} is beyond the {patch * places} that its pos_embed_max_size={places} has places for"

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        own = self.transformer.get("sample_size", 128)
        size = height_and_width(self._latent_size, own, "transformer/config.json")
        return (int(self.transformer.get("in_channels", 16)), *size)

    @property
    def tokens(self) -> int:
        patch = int(self.transformer.get("patch_size", 2))
        return (self.latent_shape[1] // patch) * (self.latent_shape[2] // patch)

    @property
    def state_tokens(self) -> int:
        return tokens_of(self.files, CLIPS[0]) + self.t5_tokens

    def encode(self, texts: Texts, prompt: str) -> Conditioning:
        length = texts[CLIPS[0]].tokenizer.model_max_length
        found = [texts[part](prompt, length, output_hidden_states=True) for part in CLIPS]
        clips = torch.cat([output.hidden_states[-2][0] for output in found], dim=-1)
        if T5 in texts:
            t5 = texts[T5](prompt, self.t5_tokens)[0][0].to(clips.device)
        else:
            t5 = clips.new_zeros(self.t5_tokens, self.joint_width)
        states = torch.cat([pad(clips, (0, self.joint_width - clips.shape[-1])), t5.to(clips.dtype)])
        pooled = torch.cat([output.text_embeds[0] for output in found], dim=-1)
        return {"pooled_prompt_embeds": pooled.to(self._stored), "prompt_embeds": states.to(self._stored)}

    def call(self, network: Any, x: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        output: Tensor = network(
            hidden_states=x,
            timestep=times,
            encoder_hidden_states=conditioning["prompt_embeds"],
            pooled_projections=conditioning["pooled_prompt_embeds"],
            return_dict=False,
        )[0]
        return output
