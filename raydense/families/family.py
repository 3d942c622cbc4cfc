"""What sets one kind of model apart from the others, told from its pipeline's files; it holds no weights.

Nothing else in the project knows a kind: `raydense.families.known` gives the one that a pipeline is of.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from raydense.families.conditioning import Conditioning
from raydense.families.text import TextEncoder
from raydense.pipelines.pipeline_files import Part, PipelineFiles, class_in

Texts = Mapping[str, TextEncoder]  # by folder
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True)
class Evaluated:
    """How users sample such a model. steps: None: as in training."""

    dynamics: str | None = None
    steps: int | None = None


class Family(ABC):
    """One kind of model, for a run's sizes.

    Args:
        files: of the pipeline; what is not known of it is as the classes have it.
        latent_size: edge, or (height, width), of the latents; None: the pipeline's own.
        guidance_scale: w.
        text_tokens: of the T5; None: as many as diffusers' pipeline takes.
        stored: precision of a conditioning that has a T5's states.
    """

    advice: ClassVar[str]  # what to give in the place of a pipeline that cannot be taken
    dynamics: ClassVar[tuple[str, ...]] = ("ddim",)  # that a chain can have; the first where none is asked for
    evaluated_dynamics: ClassVar[tuple[str, ...]] = dynamics  # that a chain of what is judged can have
    evaluated: ClassVar[Evaluated] = Evaluated()
    lora_targets: ClassVar[tuple[str, ...]] = ATTENTION
    exclude_last: ClassVar[int] = 0  # steps at the end of a chain that no loss draws, where nobody says how many
    even_levels: ClassVar[bool] = False  # of noise, before the scheduler shifts them
    upcasts_decoder: ClassVar[bool] = False  # from 16 bits, where the VAE's file says so
    halves: ClassVar[bool] = True  # guidance by an unconditional half of every call; else it is an input

    def __init__(
        self,
        files: PipelineFiles,
        *,
        latent_size: int | tuple[int, int] | None = None,
        guidance_scale: float = 1.0,
        text_tokens: int | None = None,
        stored: torch.dtype = torch.float32,
    ) -> None:
        self.files, self.layout = files, files.layout
        self.guidance_scale, self._latent_size, self._text_tokens = guidance_scale, latent_size, text_tokens
        self._stored = stored

    def __repr__(self) -> str:
        """All that decides its shapes."""
        sizes = (self._latent_size, self.guidance_scale, self._text_tokens, self._stored)
        return f"{type(self).__name__}({self.files!r}, {sizes})"

    # -- from files alone -----------------------------------------------------------------------------------------

    @abstractmethod
    def problems(self) -> Iterator[str]:
        """What in the pipeline's files this kind cannot take, as far as they are known."""

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what is denoised. Raises: ValueError if no size is chosen and the files name none."""

    @property
    @abstractmethod
    def conditioning_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of one prompt's conditioning, by name."""

    @property
    def tokens(self) -> int:
        """That the network makes of a latent."""
        return int(self.latent_shape[1] * self.latent_shape[2])

    @property
    def conditioning_dtype(self) -> torch.dtype:
        """As it is stored."""
        return torch.float32

    def decoder_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Of the VAE beside a network of `dtype`: float32 where its file asks for it, or says nothing."""
        says_so = (self.files["vae"] or {}).get("force_upcast", True)
        return torch.float32 if self.upcasts_decoder and says_so else dtype

    @property
    def guided(self) -> bool:
        """Whether a call has two halves."""
        return self.halves and self.guidance_scale != 1

    @property
    def rows(self) -> int:
        """Of the network that a latent takes in a call."""
        return 2 if self.guided else 1

    @property
    def takes_guidance(self) -> bool:
        """Whether a scale other than 1 changes what the network gives."""
        return True

    # -- with networks --------------------------------------------------------------------------------------------

    @abstractmethod
    def encode(self, texts: Texts, prompt: str) -> Conditioning:
        """One prompt's conditioning, names in alphabetical order, as it is stored."""

    def unconditional(self, texts: Texts) -> Conditioning:
        """That of the unconditional half."""
        return self.encode(texts, "")

    @abstractmethod
    def call(self, network: Any, x: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's output [N, C, H, W] for latents of that shape. Args: times [N], as the schedule has them."""

    def example_inputs(self, dtype: torch.dtype, device: torch.device | str) -> tuple[Tensor, Tensor, Conditioning]:
        """Zeros for a call with one row."""
        like = torch.zeros(1, device=device, dtype=dtype)
        zeros = {name: like.new_zeros(1, *shape) for name, shape in self.conditioning_shapes.items()}
        return like.new_zeros(1, *self.latent_shape), torch.zeros(1, device=device), zeros


def height_and_width(chosen: int | tuple[int, int] | None, own: Any, where: str) -> tuple[int, int]:
    """Of the latents: as chosen, else the network's own, which are square. Args: where: its file, for the message.

    Raises: ValueError if nothing is chosen and the network's file names no single size.
    """
    if chosen is None and (isinstance(own, bool) or not isinstance(own, int) or own < 1):
        pair = isinstance(own, list | tuple) and len(own) == 2
        example = list(own) if pair else "64 or [96, 64] (height, width)"
        raise ValueError(f"{where}: sample_size={own} is not one size; set sampler.latent_size, such as {example}")
    size = own if chosen is None else chosen
    return (size, size) if isinstance(size, int) else size


def class_problems(files: PipelineFiles) -> Iterator[str]:
    """Parts of other classes than the layout's, by model_index.json and by what each part says of itself."""
    allowed = {**{part: (name,) for part, name in files.networks.items()}, **files.layout.tokenizers}
    for part, known in allowed.items():
        if not files.has(part):
            continue
        own = files[part] or {}
        named_by = own.get("architectures") if part.startswith("text_encoder") else [own.get("_class_name")]
        says = named_by[0] if isinstance(named_by, list) and named_by else None
        named = class_in(files.index or {}, part)
        for found in (named, says) if named != says else (says,):
            if found is not None and found not in known:
                yield f"its {part} is a {found}, not a {known[0]}"


def set_keys(part: Part, reasons: Mapping[str, str]) -> dict[str, str]:
    """What is set although it should not be, by reason: `key=value, …`."""
    found: dict[str, str] = {}
    for key, reason in reasons.items():
        if value := part.get(key):
            found[reason] = ", ".join(filter(None, (found.get(reason), f"{key}={value}")))
    return found


def decoder_problems(vae: Part | None, unwanted: Mapping[str, str]) -> Iterator[str]:
    """Args: unwanted: keys that must be unset, with the reason."""
    if vae is None:
        return
    where, scale, channels = "vae/config.json: ", vae.get("scaling_factor", 1), vae.get("out_channels", 3)
    if channels != 3:
        yield f"{where}out_channels={channels}, but a picture has 3"
    if not scale:
        yield f"{where}scaling_factor={scale}, by which latents are divided"
    for reason, keys in set_keys(vae, unwanted).items():
        yield f"{where}{keys}: {reason}"
