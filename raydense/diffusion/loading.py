"""A policy out of a pipeline's files, part by part."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig

from raydense.diffusion.kernel import Schedule
from raydense.diffusion.policy import Policy
from raydense.families.family import Family
from raydense.families.text import TextEncoder, limit_tokens
from raydense.pipelines.model_folder import ModelFolder
from raydense.pipelines.networks import class_of, load_network, load_part
from raydense.pipelines.pipeline_files import tokenizer_of


def load_policy(
    family: Family,
    schedule: Schedule,
    *,
    revision: str | None = None,
    variant: str | None = None,
    lora: LoraConfig,
    seed: int,
    dtype: torch.dtype,
    device: torch.device,
    with_decoder: bool,
    with_texts: bool = True,
    t5_dtype: torch.dtype = torch.float32,
    t5_device: torch.device | None = None,
    **how: Any,
) -> Policy:
    """Loads the pipeline whose files the family was told (hub id, directory or pkg://…; safetensors only) as a policy.

    Component by component: a safety checker beside them is never read. A CLIP is float32 whatever `dtype` is, so that
    samplers and learner condition on the same embeddings.
    Args:
        schedule: of the chain.
        variant: of the weights, such as fp16; None: plain ones, or the only variant there is.
        with_texts: whether prompts are to be encoded; else the unconditional half's are all that is kept.
        t5_dtype, t5_device: of a T5; None: `device`.
        how: as of `Policy`.
    Raises: ConfigError where it cannot be had, is damaged or incomplete.
    """
    files = family.files

    def folder(part: str) -> ModelFolder:
        return ModelFolder("policy.model", files.model, revision, part)

    def network(part: str, dtype: torch.dtype, place: torch.device = device) -> Any:
        cls = class_of(files.networks[part])
        return load_network(cls, folder(part), dtype=dtype, variant=variant).to(place)

    def text(part: str) -> TextEncoder:
        how = (t5_dtype, t5_device or device) if files.is_t5(part) else (torch.float32, device)
        encoder = network(part, *how)
        return TextEncoder(encoder, load_tokenizer(folder(tokenizer_of(part)), encoder.config))

    denoiser = network(family.layout.denoiser, dtype)
    vae = network("vae", family.decoder_dtype(dtype)) if with_decoder else None
    encoders = family.layout.text_encoders if with_texts or family.guided else ()
    texts = {part: text(part) for part in encoders if files.has(part)}
    policy = Policy(family, denoiser, texts, vae, schedule, lora, seed, **how)
    if not with_texts:
        policy.texts = {}
    return policy


def load_tokenizer(folder: ModelFolder, encoder: Any) -> Any:
    """Args: encoder: the configuration of the network that reads its tokens. Raises: ConfigError."""
    kind = "CLIPTokenizer" if encoder.model_type.startswith("clip") else "T5TokenizerFast"
    tokenizer = load_part(class_of(kind).from_pretrained, folder, vocabulary=kind == "CLIPTokenizer")
    if kind == "CLIPTokenizer":
        limit_tokens(tokenizer, encoder.max_position_embeddings)
    return tokenizer
