"""What a LoRA file's metadata, or the JSON beside it, says of its tensors, in peft's terms."""

from __future__ import annotations

import json
import re
from typing import Any

from peft.utils.other import get_pattern_key
from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from raydense.config import ConfigError
from raydense.core.messages import one_line

UNSUPPORTED = ("use_rslora", "use_dora", "use_qalora", "use_bdlora", "lora_bias")  # they change what tensors mean
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # peft initialisations that move the base's weights too


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
