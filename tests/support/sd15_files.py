"""Stable Diffusion 1.5's whole architecture with random weights, in its own format."""

from __future__ import annotations

import gzip
import json
from importlib.util import find_spec
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
TEXT = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def _bytes_as_text() -> list[str]:
    """CLIP's and GPT-2's alphabet: a printable character for every byte, in the vocabulary's order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def write_tokenizer(directory: Path) -> None:
    """CLIP's real vocabulary, from the merges that open-clip-torch ships."""
    spec = find_spec("open_clip")
    assert spec is not None
    assert spec.origin is not None
    packed = Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
    merges = gzip.decompress(packed.read_bytes()).decode("utf-8").split("\n")[1 : 49152 - 256 - 2 + 1]
    letters = _bytes_as_text()
    words = [*letters, *(f"{c}</w>" for c in letters), *("".join(m.split()) for m in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    assert len(words) == TEXT["vocab_size"]
    directory.mkdir(parents=True)
    (directory / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    tokenizer = CLIPTokenizer(str(directory / "vocab.json"), str(directory / "merges.txt"), model_max_length=77)
    assert tokenizer("a cat and a dog").input_ids == [49406, 320, 2368, 537, 320, 1929, 49407]
    tokenizer.save_pretrained(directory)


def write_sd15(directory: Path) -> Path:
    """2.1 GB in bfloat16, as the pipeline's own files."""
    write_tokenizer(directory / "tokenizer")
    DDIMScheduler(**SCHEDULER).save_pretrained(directory / "scheduler")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            unet = UNet2DConditionModel(**UNET)
            assert sum(p.numel() for p in unet.parameters()) == 859_520_964
            unet.save_pretrained(directory / "unet")
            del unet
            vae = AutoencoderKL(**VAE)
            assert sum(p.numel() for p in vae.parameters()) == 83_653_863
            vae.save_pretrained(directory / "vae")
            text = CLIPTextModel(CLIPTextConfig(**TEXT))
            assert sum(p.numel() for p in text.parameters()) == 123_060_480
            text.save_pretrained(directory / "text_encoder")
    finally:
        torch.set_default_dtype(before)
    return directory
