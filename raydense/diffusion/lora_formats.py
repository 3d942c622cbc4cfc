"""What the LoRA files of others hold beside the U-Net's two factors a layer: read, refused by name, or left out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin

from raydense.config import ConfigError
from raydense.core.messages import first_few
from raydense.sections.base import TextEncoderLora

Tensors = Mapping[str, torch.Tensor]

FOREIGN = (  # what a tensor's name gives away, and whose it is
    (re.compile(r"\bhada_"), "a LoHa"),
    (re.compile(r"\blokr_"), "a LoKr"),
    (re.compile(r"\b(dora_scale|lora_magnitude_vector)\b"), "a DoRA"),
    (re.compile(r"\blora_mid\b"), "a LoCon with a Tucker decomposition"),
    (re.compile(r"\b(boft|oft)_"), "an OFT"),
    (re.compile(r"\bon_input$"), "an IA3"),
    (re.compile(r"\.[ab][12m]\.weight$"), "a GLoRA"),
    (re.compile(r"\.(diff|diff_b|w_norm|b_norm)$"), "a LyCORIS file with whole differences of weights"),
    (re.compile(r"^(lora_te2_|text_encoder_2\.)"), "a LoRA of Stable Diffusion XL"),
)

_TEXT = re.compile(r"^(lora_te\d*_|(base_model\.model\.)?text_(encoder|model)\.)")
_KOHYA_UNET = "lora_unet_"
_DOWN, _UP, _ALPHA = "lora_down.weight", "lora_up.weight", "alpha"


def refuse_foreign(names: Iterable[str], source: str) -> None:
    """Raises: ConfigError naming the format of a file whose tensors are no LoRA's two factors a layer."""
    for name in names:
        for pattern, what in FOREIGN:
            if pattern.search(name):
                raise ConfigError(f"{source} is {what} ({name}), which cannot be taken over; give a plain LoRA")


def unet_part(tensors: Tensors, source: str, text_encoder: TextEncoderLora) -> Tensors:
    """The tensors that are not a text encoder's. Raises: ConfigError if there are such and they are to be refused."""
    texts = [name for name in tensors if _TEXT.match(name)]
    if texts and text_encoder == "refuse":
        raise ConfigError(
            f"{source} also adapts the text encoder, which stays as it is here ({len(texts)} tensors: "
            f"{first_few(texts, 1)}); policy.text_encoder_lora=leave_out takes the U-Net's part alone"
        )
    if texts and len(texts) == len(tensors):
        raise ConfigError(f"{source} adapts the text encoder alone; give a LoRA of the U-Net")
    return {name: tensor for name, tensor in tensors.items() if not _TEXT.match(name)}


# -- Kohya's files ------------------------------------------------------------------------------------------------


def is_kohya(names: Iterable[str]) -> bool:
    """Whether the file is of sd-scripts or names its tensors like that, as many tools do."""
    return any(name.startswith(_KOHYA_UNET) for name in names)


def from_kohya(tensors: Tensors, source: str) -> Tensors:
    """The U-Net's part of a Kohya file under diffusers' names, in float32, each up-projection times its alpha / rank.

    Raises: ConfigError for tensors of another name, a layer without both factors, or an alpha that is no number.
    """
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, part = name.partition(".")
        layers.setdefault(layer, {})[part] = tensor
    odd = [
        f"{layer} with {', '.join(sorted(parts))}"
        for layer, parts in layers.items()
        if not layer.startswith(_KOHYA_UNET) or parts.keys() - {_ALPHA} != {_DOWN, _UP}
    ]
    if odd:
        raise ConfigError(f"{source}: {len(odd)} of its layers are not the two factors of a LoRA: {first_few(odd, 2)}")
    folded = {}
    for layer, parts in layers.items():
        down, up = parts[_DOWN].float(), parts[_UP].float()
        folded[f"{layer}.{_DOWN}"], folded[f"{layer}.{_UP}"] = down, up * _kohya_scale(layer, parts, source)
    named, _ = StableDiffusionLoraLoaderMixin.lora_state_dict(folded)
    result: Tensors = named
    return result


def _kohya_scale(layer: str, parts: Tensors, source: str) -> float:
    """alpha / rank; sd-scripts reads a layer without an alpha, or with 0, as alpha = rank."""
    if _ALPHA not in parts:
        return 1.0
    alpha = parts[_ALPHA]
    if alpha.numel() != 1:
        raise ConfigError(f"{source}: {layer}.{_ALPHA} {list(alpha.shape)} is not one number")
    rank = next(iter(parts[_DOWN].shape), 0) or 1  # a tensor without one is refused where shapes are compared
    return (alpha.item() or rank) / rank
