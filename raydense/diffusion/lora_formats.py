"""What the LoRA files of others hold beside the denoiser's two factors a layer: read, refused by name, or left out.

And what their metadata, or the JSON beside them, says of the tensors, in peft's terms.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from raydense.config import ConfigError
from raydense.core.messages import first_few, one_line
from raydense.pipelines.pipeline_files import T5_ENCODER, Layout
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
    (re.compile(r"^(double|single)_blocks\.\d+\.processor\."), "in XLabs' format of FLUX"),
    (re.compile(r"^diffusion_model\."), "in ComfyUI's format"),
    (re.compile(r"^lora_transformer_"), "of a format that names its layers lora_transformer_…"),
)

UNSUPPORTED = ("use_rslora", "use_dora", "use_qalora", "use_bdlora", "lora_bias")  # they change what tensors mean
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # peft initialisations that move the base's weights too

_TEXT = re.compile(r"^(lora_te(?P<kohyas>\d*)_|(base_model\.model\.)?text_(model|encoder(_(?P<own>\d))?)\.)")


def refuse_foreign(names: Iterable[str], source: str, layout: Layout) -> None:
    """Raises: ConfigError for a file whose tensors are no LoRA's two factors a layer, or another kind of model's."""
    for name in names:
        for pattern, what in FOREIGN:
            if pattern.search(name):
                raise ConfigError(f"{source} is {what} ({name}), which cannot be taken over; give a plain LoRA")
        if (encoder := _text_encoder(name, layout)) not in (None, *layout.text_encoders):
            raise ConfigError(
                f"{source} adapts a {encoder} ({name}), which this kind of model has not; give a LoRA of its own kind"
            )


def _text_encoder(name: str, layout: Layout) -> str | None:
    """The folder of the text encoder that a tensor belongs to; None of the denoiser's."""
    if (match := _TEXT.match(name)) is None:
        return None
    if match["kohyas"] == "3" and layout.has_t5:  # of FLUX, too, whose second encoder it is
        return next(part for part, name in layout.networks.items() if name == T5_ENCODER)
    number = match["kohyas"] or match["own"] or "1"
    return "text_encoder" if number == "1" else f"text_encoder_{number}"


def denoisers_part(tensors: Tensors, source: str, text_encoder: TextEncoderLora, layout: Layout) -> Tensors:
    """The tensors that are not a text encoder's. Raises: ConfigError if there are such and they are to be refused."""
    texts = [name for name in tensors if _text_encoder(name, layout)]
    if texts and text_encoder == "refuse":
        raise ConfigError(
            f"{source} also adapts the text encoder, which stays as it is here ({len(texts)} tensors: "
            f"{first_few(texts, 1)}); policy.text_encoder_lora=leave_out takes the {layout.called}'s part alone"
        )
    if texts and len(texts) == len(tensors):
        raise ConfigError(f"{source} adapts the text encoder alone; give a LoRA of the {layout.called}")
    return {name: tensor for name, tensor in tensors.items() if not _text_encoder(name, layout)}


class Adapter(BaseModel):
    """Of peft's configuration of an adapter, what decides how its tensors are read."""

    model_config = ConfigDict(frozen=True, strict=True)

    peft_type: str | None = None
    lora_alpha: FiniteFloat | None = None
    alpha_pattern: dict[str, FiniteFloat] | None = None

    def alpha(self, module: str, rank: int) -> float:
        """That of one layer, by peft's rule; its rank where none is stated."""
        patterns = {re.sub(r"^(\^?)unet\.", r"\1", key): value for key, value in (self.alpha_pattern or {}).items()}
        stated = patterns.get(get_pattern_key([*patterns], module), self.lora_alpha)
        return float(rank) if stated is None else stated


def read_adapter(text: str, source: str, where: str, prefix: str = "") -> Adapter:
    """Reads peft's settings of an adapter.

    Args:
        text: JSON.
        where: it stands, for errors.
        prefix: of the keys that are meant, `unet.` in diffusers' metadata; keys without one are meant too.
    Raises: ConfigError naming file and key.
    """
    try:
        settings = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{source}: {where} is not JSON ({one_line(error)})") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{source}: {where} holds {_short(settings)} where an object of settings belongs")
    settings = {key.removeprefix(prefix): value for key, value in settings.items()}
    try:
        adapter = Adapter.model_validate(settings)
    except ValidationError as error:
        problem = error.errors()[0]
        key, message = ".".join(map(str, problem["loc"])), problem["msg"].removeprefix("Input ")
        raise ConfigError(f"{source}: in {where}, {prefix}{key}={_short(problem['input'])} {message}") from None
    used = [name for name in UNSUPPORTED if settings.get(name)]
    if str(settings.get("init_lora_weights")).lower().startswith(CHANGES_BASE):
        used.append(f"init_lora_weights={_short(settings['init_lora_weights'])}")
    if (adapter.peft_type or "LORA").upper() != "LORA":
        used.append(f"peft_type={adapter.peft_type}")
    if used:
        raise ConfigError(f"{source}: its {', '.join(used)} cannot be taken over; give a plain LoRA")
    return adapter


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
