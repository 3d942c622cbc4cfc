"""The models of benchmarks: real architectures, random weights, nothing downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTextConfig, CLIPTextModel

from raydense.config import Config, load_config
from raydense.core.interfaces import Scorer
from raydense.diffusion.policy import Policy
from raydense.families.text import TextEncoder
from raydense.pipelines.pipeline_files import PipelineFiles
from raydense.pipelines.published import PUBLISHED, SD15
from raydense.rewards.clip import ClipScorer
from raydense.tiny.networks import build_scheduler, build_tokenizer
from raydense.wiring.policies import build_policy, compiles, family_for, policy_of, records
from raydense.wiring.scorers import build_scorer

TOKENS = 77
SD15_FILES = PUBLISHED[SD15][1]
VOCABULARY = 49408  # of CLIP
SMALL_CLIP: Mapping[str, Mapping[str, Any]] = {
    "vision": {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 6,
               "image_size": 224, "patch_size": 32},
    "text": {"hidden_size": 320, "intermediate_size": 1280, "num_hidden_layers": 6, "num_attention_heads": 5},
    "both": {"projection_dim": 384},
}  # fmt: skip
VIT_H_14: Mapping[str, Mapping[str, Any]] = {  # HPSv2's
    "vision": {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
               "image_size": 224, "patch_size": 14},
    "text": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    "both": {"projection_dim": 1024},
}  # fmt: skip


@dataclass(frozen=True)
class BenchModel:
    """One architecture, and the preset whose schedule of draws it is measured with.

    unet, vae, text: what differs from the diffusers and transformers classes' defaults, which are SD1.5's U-Net.
        None in all three: the embedded pipeline.
    clip: the scorer's vision and text networks; None: the scorer of the preset.
    overrides: of the preset.
    cut: further ones on a CPU, where the preset's own work would take hours.
    """

    preset: str
    overrides: tuple[str, ...]
    cut: tuple[str, ...] = ()
    clip: Mapping[str, Mapping[str, Any]] | None = None
    scorer: str = "of the preset"
    unet: Mapping[str, Any] | None = None
    vae: Mapping[str, Any] | None = None
    text: Mapping[str, Any] | None = None

    def config(self, *overrides: str) -> Config:
        """The preset as it is measured."""
        return load_config(None, self.preset, [*self.overrides, *overrides])


_SD15 = BenchModel(
    "single-prompt",
    (),
    cut=("steps.count=2", "steps.draws=1", "sampler.trajectories=2", "sampler.keep=2", "train.batch_groups=1"),
    clip=VIT_H_14,
    scorer="CLIP ViT-H/14 (HPSv2's size), random weights",
    unet=SD15_FILES["unet"],
    vae=SD15_FILES["vae"],
    text=SD15_FILES["text_encoder"],
)
MODELS: Mapping[str, BenchModel] = {
    "tiny": BenchModel("tiny", ()),
    "unet-78m": BenchModel(
        "single-prompt",
        ("sampler.latent_size=32", "train.batch_groups=1", "learner.dtype=float32", "sampler.dtype=float32"),
        cut=("steps.count=5",),
        clip=SMALL_CLIP,
        scorer="CLIP ViT-S/32, random weights",
        unet={"sample_size": 32, "cross_attention_dim": 320, "block_out_channels": (96, 192, 384, 384)},
        vae={**SD15_FILES["vae"], "block_out_channels": (64, 128, 256, 256)},
        text={"hidden_size": 320, "intermediate_size": 1280, "num_attention_heads": 5, "num_hidden_layers": 6},
    ),
    "sd15": _SD15,
    "sd15-multi": replace(
        _SD15,
        preset="multi-prompt",
        overrides=("prompts.train=set://paper-train", "prompts.unseen=set://paper-unseen"),  # its own are a download
    ),
}


def bench_policy(
    name: str,
    config: Config,
    *,
    dtype: torch.dtype,
    device: torch.device,
    with_decoder: bool,
    merged: bool = False,
    compiled: bool | None = None,
) -> Policy:
    """The policy of `MODELS[name]`. Args: compiled: None: as the configuration says."""
    model = MODELS[name]
    if compiled is None:  # as a run would have it
        compiled = compiles(config, device) if merged else config.policy.compile is True
    how: Any = {"merged": merged, "compiled": compiled}
    how["recorded"] = merged and records(config, device)
    if model.unet is None or model.vae is None or model.text is None:
        named = str(dtype).removeprefix("torch.")
        return build_policy(config, dtype=named, device=device, with_decoder=with_decoder, **how)
    text = {**model.text, "max_position_embeddings": TOKENS}
    parts = {"unet": model.unet, "vae": model.vae, "text_encoder": text, "scheduler": dict(build_scheduler().config)}
    family = family_for(config, PipelineFiles(name, parts={**parts, "tokenizer": {}}))
    encoder = _random(lambda: CLIPTextModel(CLIPTextConfig(**text)), torch.float32, device)
    return policy_of(
        config,
        family,
        _random(lambda: UNet2DConditionModel(**model.unet), dtype, device),
        {"text_encoder": TextEncoder(encoder, _tokenizer())},
        _random(lambda: AutoencoderKL(**model.vae), dtype, device) if with_decoder else None,
        **how,
    )


def bench_scorer(name: str, config: Config, device: torch.device) -> Scorer:
    """The training scorer of `MODELS[name]`, in batches of the unit's images."""
    sizes = MODELS[name].clip
    if sizes is None:
        return build_scorer(config.reward.scorer)
    tokenizer, vision, text = _tokenizer(), sizes["vision"], sizes["text"]
    ids = {f"{token}_token_id": getattr(tokenizer, f"{token}_token_id") for token in ("bos", "eos", "pad")}
    text = {**text, **ids, "vocab_size": VOCABULARY, "max_position_embeddings": TOKENS}
    clip = CLIPConfig(text_config=text, vision_config=dict(vision), **sizes["both"])
    side = vision["image_size"]
    images = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    network = _random(lambda: CLIPModel(clip), torch.float32, device)
    return ClipScorer(MODELS[name].scorer, network, CLIPProcessor(images, tokenizer), device=device)


def _tokenizer() -> Any:
    tokenizer = build_tokenizer()
    tokenizer.model_max_length = TOKENS
    return tokenizer


def _random(build: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Built in its dtype on its device, from a fixed seed."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng(), device:
            torch.manual_seed(0)
            return build()
    finally:
        torch.set_default_dtype(before)
