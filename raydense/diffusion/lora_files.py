"""Reads a LoRA from the files that others write: diffusers', peft's, Kohya's, and the paper's authors'.

Nothing binds silently: what is read must be the policy's adapter, tensor by tensor, at its rank and alpha.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raydense.config import ConfigError
from raydense.core.finite import not_finite
from raydense.core.messages import first_few, one_line
from raydense.core.seeding import generator
from raydense.core.types import FloatArray, PolicyWeights
from raydense.diffusion.lora import KEY
from raydense.diffusion.lora_formats import Adapter, denoisers_part, read_adapter, refuse_foreign
from raydense.diffusion.lora_kohya import from_kohya, is_kohya
from raydense.files.weight_files import misfit, read_checkpoint, read_safetensors
from raydense.pipelines.pipeline_files import PipelineFiles
from raydense.sections.base import TextEncoderLora

PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
KNOWN_FILES = ("pytorch_lora_weights.safetensors", PEFT_FILE, "pytorch_model.bin")

MOST_TARGETS = 80  # that a line prints
PLAIN = PipelineFiles("")  # Stable Diffusion, of which no file is known
_PREFIX = re.compile(r"^((unet|transformer)\.|base_model\.model\.((unet|transformer)\.)?)")
_HALF = {"down": "A", "up": "B", "A": "A", "B": "B"}
_MODULE_FIRST = re.compile(r"^(?P<module>.+)\.lora(\.|_linear_layer\.|_)(?P<half>down|up|A|B)(\.default)?\.weight$")
_PROCESSOR = re.compile(r"^(?P<attention>.+)\.processor\.to_(?P<to>q|k|v|out)_lora\.(?P<half>down|up)\.weight$")
_KIND = re.compile(r"[^.]+(\.\d+)*$")  # of a layer: the end of its name, such as `to_q` and `to_out.0`
_POLICY_NAME = re.compile(r"^(?P<module>.+)\.lora_(?P<half>A|B)\.default\.weight$")


@dataclass(frozen=True)
class LoraFile:
    """A LoRA as its file has it: float32 tensors under the policy's names, at one rank and one alpha."""

    source: str  # setting and path, which begin every error about it
    tensors: Mapping[str, FloatArray]
    ranks: Mapping[str, int]  # of the layers, by their full names, before zeros filled the smaller ones
    alpha: float  # as stated, else the rank, as diffusers reads it

    @property
    def rank(self) -> int:
        """The largest of its layers'."""
        return max(self.ranks.values())


def read_lora(
    location: str,
    setting: str = "policy.init_lora",
    text_encoder: TextEncoderLora = "refuse",
    pipeline: PipelineFiles = PLAIN,
) -> LoraFile:
    """Reads a LoRA.

    Args:
        location: a diffusers or Kohya file (`*.safetensors`), a peft adapter (its file beside `adapter_config.json`),
            the authors' `*.bin`, or a directory with exactly one of them under its usual name.
        setting: that gave the location, for errors.
        text_encoder: what becomes of tensors that adapt the text encoder.
        pipeline: that it is for.
    Raises: ConfigError naming the file.
    """
    path = _find(location, setting)
    source = f"{setting}={path}"
    tensors, metadata = _read(path, source)
    refuse_foreign(tensors, source, pipeline.layout)
    raw, adapter = denoisers_part(tensors, source, text_encoder, pipeline.layout), Adapter()
    if is_kohya(raw):
        raw = from_kohya(raw, source, pipeline)
    elif any(name.startswith("base_model.model.") for name in raw):
        adapter = _peft_adapter(path, source)
    elif metadata is not None:
        prefix = next(name for name in raw).partition(".")[0]
        adapter = read_adapter(metadata, source, f"its metadata {KEY}", prefix=f"{prefix}.")
    named = {_policy_name(name): tensor for name, tensor in raw.items()}
    if len(named) < len(raw):
        raise ConfigError(f"{source}: several of its tensors belong to one projection; give a file with one LoRA")
    return _of_one_rank(source, {name: _float32(tensor) for name, tensor in named.items()}, adapter)


def load_lora(
    location: str,
    expected: Mapping[str, tuple[int, ...]],
    *,
    rank: int,
    alpha: float,
    seed: int = 0,
    text_encoder: TextEncoderLora = "refuse",
    pipeline: PipelineFiles = PLAIN,
    layers: Collection[str] = (),
) -> PolicyWeights:
    """Reads a LoRA as version 0 of the policy's weights.

    A layer of a smaller rank is filled up as a new LoRA begins, A normal with standard deviation 1/r and B zero: of two
    factors that are both zero neither would ever have a gradient.

    Args:
        location, text_encoder, pipeline: as of `read_lora`.
        expected: shapes of the policy's LoRA tensors, by name.
        rank, alpha: the policy's.
        seed: of the run.
        layers: of the network, which can take a LoRA; for the advice.
    Raises: ConfigError naming the file and every kind of difference.
    """
    file = read_lora(location, text_encoder=text_encoder, pipeline=pipeline)
    check_names(file, expected, _advice(file, expected, layers))
    if file.rank != rank:
        raise ConfigError(f"{file.source} has rank {file.rank}, but policy.lora_rank={rank}; make them agree")
    if file.alpha != alpha:
        raise ConfigError(
            f"{file.source} has alpha {file.alpha:g}, but policy.lora_alpha gives {alpha:g}; set policy.lora_alpha"
        )
    check_shapes(file, expected)
    tensors = {name: np.array(array) for name, array in file.tensors.items()}
    for module, own in file.ranks.items():
        added = tensors[f"{module}.lora_A.default.weight"][own:]
        added[:] = torch.randn(added.shape, generator=generator(seed, f"init_lora/{module}")).numpy() / rank
    return PolicyWeights.of(0, tensors)


def _advice(file: LoraFile, expected: Mapping[str, Any], layers: Collection[str]) -> str:
    """What to set where the file adapts other layers than the policy."""
    ours = _ends({name.partition(".lora_")[0] for name in expected}, ())
    theirs = _ends(file.ranks, [layer for layer in layers if layer not in file.ranks])
    if ours == theirs or len(theirs) > MOST_TARGETS:
        return ""
    return f"; for what it adapts, set policy.lora_targets=[{', '.join(theirs)}]"


def _ends(modules: Iterable[str], others: Collection[str]) -> list[str]:
    """Of the modules' names, the shortest ends that no other has, from their kinds on."""
    found = set()
    for module in modules:
        end = _KIND.search(module)[0]  # type: ignore[index]  # there is a last part
        while end != module and any(f".{other}".endswith(f".{end}") for other in others):
            end = f"{module.removesuffix(f'.{end}').rpartition('.')[2]}.{end}"
        found.add(end)
    return sorted(found)


def padded(name: str, array: FloatArray, rank: int) -> FloatArray:
    """A LoRA tensor, a matrix or a convolution, at a rank that is not smaller, where what is new is zero."""
    axis = _rank_axis(name)
    widths = [(0, rank - size if i == axis else 0) for i, size in enumerate(array.shape)]
    return np.pad(array, widths)


def _rank_axis(name: str) -> int:
    return 0 if ".lora_A." in name else 1


def _find(location: str, setting: str) -> Path:
    path = Path(location).expanduser()
    if path.is_file():
        return path
    found = [path / name for name in KNOWN_FILES if (path / name).is_file()]
    if len(found) != 1:
        what = f"holds {len(found)} of" if path.is_dir() else "is not there; give a file, or a directory with one of"
        raise ConfigError(f"{setting}={location} {what} {', '.join(KNOWN_FILES)}; name the file itself")
    return found[0]


def _read(path: Path, source: str) -> tuple[Mapping[str, torch.Tensor], str | None]:
    """The file's tensors by its own names, and the JSON that diffusers leaves in its metadata."""
    metadata = None
    try:
        if path.suffix == ".safetensors":
            tensors, texts = read_safetensors(path)
            metadata = texts.get(KEY)
        else:
            tensors = read_checkpoint(path)
    except ValueError as error:
        raise ConfigError(f"{source}: {one_line(error)}") from None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise ConfigError(f"{source}: holds no tensors by name; give a file of LoRA tensors")
    if not tensors:
        raise ConfigError(f"{source}: holds no tensors at all; give a file of LoRA tensors")
    if names := not_finite({name: tensor.float() for name, tensor in tensors.items()}):
        raise ConfigError(f"{source}: has NaN or infinity in {first_few(names)}; give a LoRA that did not diverge")
    return tensors, metadata


def _peft_adapter(path: Path, source: str) -> Adapter:
    try:
        text = (path.parent / PEFT_CONFIG).read_text("utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{source}: {PEFT_CONFIG} beside it cannot be read ({error}); put it there") from None
    return read_adapter(text, source, f"{PEFT_CONFIG} beside it")


def _of_one_rank(source: str, tensors: Mapping[str, FloatArray], adapter: Adapter) -> LoraFile:
    """Where layers differ in rank or alpha, each B takes its alpha / rank, so that alpha = rank holds for all.

    Raises: ConfigError for tensors of no LoRA, and for a layer whose factors have two ranks.
    """
    ranks: dict[str, int] = {}
    odd = []
    for name, array in tensors.items():
        if not (match := _POLICY_NAME.match(name)):
            continue  # listed as surplus, by whoever knows what belongs
        own = array.shape[_rank_axis(name)] if array.ndim > 1 else 0
        if not own or ranks.setdefault(match["module"], own) != own:
            odd.append(f"{name} {list(array.shape)}")
    if odd:
        raise ConfigError(f"{source}: {len(odd)} tensors do not have their layer's rank: {first_few(odd)}")
    if not ranks:
        raise ConfigError(f"{source} holds no LoRA; its tensors: {first_few(list(tensors))}")
    alphas = {module: adapter.alpha(module, own) for module, own in ranks.items()}
    rank = max(ranks.values())
    if len({*ranks.values()}) == len({*alphas.values()}) == 1:
        return LoraFile(source, tensors, ranks, next(iter(alphas.values())))
    one_rank = dict(tensors)
    for name, match in ((name, _POLICY_NAME.match(name)) for name in tensors):
        if match is not None:
            scale = alphas[match["module"]] / ranks[match["module"]] if match["half"] == "B" else 1.0
            one_rank[name] = padded(name, tensors[name] * np.float32(scale), rank)
    return LoraFile(source, one_rank, ranks, float(rank))


def _policy_name(name: str) -> str:
    """The policy's name of a tensor; a name of no known form comes back as it is, to be listed as surplus."""
    bare = _PREFIX.sub("", name)
    if match := _PROCESSOR.match(bare):
        to = "to_out.0" if match["to"] == "out" else f"to_{match['to']}"
        return f"{match['attention']}.{to}.lora_{_HALF[match['half']]}.default.weight"
    if match := _MODULE_FIRST.match(bare):
        return f"{match['module']}.lora_{_HALF[match['half']]}.default.weight"
    return name


def check_names(file: LoraFile, expected: Iterable[str], advice: str = "") -> None:
    """Raises: ConfigError unless the file has exactly these tensors; advice ends it."""
    _refuse(file, misfit(dict.fromkeys(file.tensors, ()), dict.fromkeys(expected, ())), advice)


def check_shapes(file: LoraFile, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raises: ConfigError unless its tensors have these shapes."""
    _refuse(file, misfit({name: array.shape for name, array in file.tensors.items()}, expected))


def _refuse(file: LoraFile, problems: str, advice: str = "") -> None:
    if problems:
        raise ConfigError(f"{file.source} is not this policy's LoRA; {problems}{advice}")


def _float32(tensor: torch.Tensor) -> FloatArray:
    array: FloatArray = tensor.detach().to(torch.float32).numpy().astype(np.float32)
    return array
