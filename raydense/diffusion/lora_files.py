"""Reads a LoRA from the files that others write: diffusers', peft's, and the paper's authors'.

Nothing binds silently: what is read must be the policy's adapter, tensor by tensor, at its rank and alpha.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raydense.config import ConfigError
from raydense.core.finite import not_finite
from raydense.core.messages import first_few, one_line
from raydense.core.types import FloatArray, PolicyWeights
from raydense.core.weight_files import read_checkpoint, read_safetensors

PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
KNOWN_FILES = ("pytorch_lora_weights.safetensors", PEFT_FILE, "pytorch_model.bin")
UNSUPPORTED = ("rank_pattern", "alpha_pattern", "use_rslora", "use_dora")  # of peft: they change what tensors mean

_PREFIX = re.compile(r"^(unet\.|base_model\.model\.(unet\.)?)")
_HALF = {"down": "A", "up": "B", "A": "A", "B": "B"}
_MODULE_FIRST = re.compile(r"^(?P<module>.+)\.lora(\.|_linear_layer\.|_)(?P<half>down|up|A|B)(\.default)?\.weight$")
_PROCESSOR = re.compile(r"^(?P<attention>.+)\.processor\.to_(?P<to>q|k|v|out)_lora\.(?P<half>down|up)\.weight$")


@dataclass(frozen=True)
class LoraFile:
    """A LoRA as its file has it: float32 tensors under the policy's names."""

    source: str  # setting and path, which begin every error about it
    tensors: Mapping[str, FloatArray]
    stated_alpha: float | None

    @property
    def rank(self) -> int:
        """Raises: ConfigError if its layers have several."""
        ranks = sorted({int(tensor.shape[0]) for name, tensor in self.tensors.items() if ".lora_A." in name})
        if len(ranks) != 1:
            raise ConfigError(f"{self.source} has ranks {', '.join(map(str, ranks))}; give a LoRA of one rank")
        return ranks[0]

    @property
    def alpha(self) -> float:
        """As stated, else the rank, as diffusers reads it."""
        return self.stated_alpha if self.stated_alpha is not None else float(self.rank)

    @property
    def modules(self) -> tuple[str, ...]:
        """Full names of the layers that it adapts."""
        return tuple(sorted({name.partition(".lora_")[0] for name in self.tensors}))


def read_lora(location: str, setting: str = "policy.init_lora") -> LoraFile:
    """Reads a LoRA.

    Args:
        location: a diffusers file (`*.safetensors`), a peft adapter (its file beside `adapter_config.json`), the
            authors' `*.bin`, or a directory with exactly one of them under its usual name.
        setting: that gave the location, for errors.
    Raises: ConfigError naming the file.
    """
    path = _find(location, setting)
    source = f"{setting}={path}"
    raw, stated_alpha = _read(path, source)
    named = {_policy_name(name): tensor for name, tensor in raw.items()}
    if len(named) < len(raw):
        raise ConfigError(f"{source}: several of its tensors belong to one projection; give a file with one LoRA")
    return LoraFile(source, {name: _float32(tensor) for name, tensor in named.items()}, stated_alpha)


def load_lora(location: str, expected: Mapping[str, tuple[int, ...]], *, rank: int, alpha: float) -> PolicyWeights:
    """Reads a LoRA as version 0 of the policy's weights.

    Args:
        location: as of `read_lora`.
        expected: shapes of the policy's LoRA tensors, by name.
        rank, alpha: the policy's.
    Raises: ConfigError naming the file and every kind of difference.
    """
    file = read_lora(location)
    check_names(file, expected)
    if file.rank != rank:
        raise ConfigError(f"{file.source} has rank {file.rank}, but policy.lora_rank={rank}; make them agree")
    if file.alpha != alpha:
        raise ConfigError(
            f"{file.source} has alpha {file.alpha:g}, but policy.lora_alpha gives {alpha:g}; set policy.lora_alpha"
        )
    check_shapes(file, expected)
    return PolicyWeights.of(0, file.tensors)


def _find(location: str, setting: str) -> Path:
    path = Path(location).expanduser()
    if path.is_file():
        return path
    found = [path / name for name in KNOWN_FILES if (path / name).is_file()]
    if len(found) != 1:
        what = f"holds {len(found)} of" if path.is_dir() else "is not there; give a file, or a directory with one of"
        raise ConfigError(f"{setting}={location} {what} {', '.join(KNOWN_FILES)}; name the file itself")
    return found[0]


def _read(path: Path, source: str) -> tuple[dict[str, torch.Tensor], float | None]:
    """The file's tensors by its own names, and the alpha that it or its neighbour states."""
    try:
        if path.suffix == ".safetensors":
            tensors, texts = read_safetensors(path)
            metadata = json.loads(texts.get("lora_adapter_metadata", "{}"))
        else:
            tensors, metadata = read_checkpoint(path), {}
    except ValueError as error:
        raise ConfigError(f"{source}: {one_line(error)}") from None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise ConfigError(f"{source}: holds no tensors by name; give a file of LoRA tensors")
    if names := not_finite({name: tensor.float() for name, tensor in tensors.items()}):
        raise ConfigError(f"{source}: has NaN or infinity in {first_few(names)}; give a LoRA that did not diverge")
    if any(name.startswith("base_model.model.") for name in tensors):
        return tensors, _alpha(_peft_config(path, source), source)
    return tensors, _alpha({key.removeprefix("unet."): value for key, value in metadata.items()}, source)


def _peft_config(path: Path, source: str) -> Mapping[str, Any]:
    try:
        config: Mapping[str, Any] = json.loads((path.parent / PEFT_CONFIG).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{source}: {PEFT_CONFIG} beside it cannot be read ({error}); put it there") from None
    return config


def _alpha(config: Mapping[str, Any], source: str) -> float | None:
    if used := [name for name in UNSUPPORTED if config.get(name)]:
        raise ConfigError(f"{source}: its {', '.join(used)} cannot be taken over; give a plain LoRA")
    return None if config.get("lora_alpha") is None else float(config["lora_alpha"])


def _policy_name(name: str) -> str:
    """The policy's name of a tensor; a name of no known form comes back as it is, to be listed as surplus."""
    bare = _PREFIX.sub("", name)
    if match := _PROCESSOR.match(bare):
        to = "to_out.0" if match["to"] == "out" else f"to_{match['to']}"
        return f"{match['attention']}.{to}.lora_{_HALF[match['half']]}.default.weight"
    if match := _MODULE_FIRST.match(bare):
        return f"{match['module']}.lora_{_HALF[match['half']]}.default.weight"
    return name


def check_names(file: LoraFile, expected: Mapping[str, Any]) -> None:
    """Raises: ConfigError unless the file has exactly these tensors."""
    missing, surplus = sorted(expected.keys() - file.tensors.keys()), sorted(file.tensors.keys() - expected.keys())
    problems = [f"{len(names)} {what}: {first_few(names)}" for what, names in
                (("missing", missing), ("surplus", surplus)) if names]  # fmt: skip
    if problems:
        raise ConfigError(f"{file.source} is not this policy's LoRA; {'; '.join(problems)}")


def check_shapes(file: LoraFile, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raises: ConfigError unless its tensors have these shapes."""
    misshapen = [
        f"{name} {list(file.tensors[name].shape)}, not {list(shape)}"
        for name, shape in sorted(expected.items())
        if file.tensors[name].shape != tuple(shape)
    ]
    if misshapen:
        raise ConfigError(
            f"{file.source} is not this policy's LoRA; {len(misshapen)} misshapen: {first_few(misshapen)}"
        )


def _float32(tensor: torch.Tensor) -> FloatArray:
    array: FloatArray = tensor.detach().to(torch.float32).numpy().astype(np.float32)
    return array
