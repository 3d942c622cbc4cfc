"""Whether the parts of a pipeline fit together: one latent goes through all of them on PyTorch's meta device.

So what no rule of a family names is found before a run starts, and without a weight.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from raydense.config import ConfigError
from raydense.core.messages import one_line
from raydense.families.family import Family
from raydense.families.text import TextEncoder
from raydense.pipelines.pipeline_files import config_file, tokens_of
from raydense.planning.footprint import denoiser_on_meta, on_meta, once


@once
def check_fit(family: Family) -> None:
    """Raises: ConfigError naming the file of the part that cannot be called, or gives what the next does not take."""
    files, layout = family.files, family.layout
    with torch.no_grad():
        encoders = {part: name for part, name in files.networks.items() if part in layout.text_encoders}
        if all(files[part] is not None for part in encoders):
            _check_conditioning(family, encoders)
        if files[layout.denoiser] is not None:
            network, inputs = denoiser_on_meta(family), family.example_inputs(torch.float32, "meta")
            _check(family, layout.denoiser, lambda: family.call(network, *inputs), (1, *family.latent_shape))
        if (vae := files["vae"]) is not None:
            decoder, latents = on_meta("AutoencoderKL", vae), torch.zeros(1, *family.latent_shape, device="meta")
            _check(family, "vae", lambda: decoder.decode(latents).sample, (1, 3, None, None))


def _check_conditioning(family: Family, encoders: dict[str, str]) -> None:
    texts = {
        part: TextEncoder(on_meta(name, family.files[part] or {}), _Tokenizer(tokens_of(family.files, part)))
        for part, name in encoders.items()
    }
    parts = ", ".join(encoders)
    given = _called(family, parts, lambda: family.encode(texts, ""))
    shapes = {name: tuple(tensor.shape) for name, tensor in given.items()}
    if shapes != (planned := dict(family.conditioning_shapes)):
        raise _refusal(family, parts, f"they give {shapes}, but its {family.layout.called} wants {planned}")


def _check(family: Family, part: str, call: Any, wanted: tuple[int | None, ...]) -> None:
    shape = tuple(_called(family, part, call).shape)
    if len(shape) != len(wanted) or any(edge not in (None, own) for edge, own in zip(wanted, shape, strict=True)):
        raise _refusal(family, part, f"it gives {list(shape)} in the place of {list(wanted)}")


def _called(family: Family, part: str, call: Any) -> Any:
    try:
        return call()
    except Exception as error:  # whatever a wrong value leads to
        raise _refusal(family, part, f"it cannot be called ({one_line(error)})") from None


def _refusal(family: Family, parts: str, what: str) -> ConfigError:
    files = ", ".join(map(config_file, parts.split(", ")))
    return ConfigError(f"policy.model={family.files.model}: {files}: {what}; give {family.advice}")


class _Tokenizer:
    """As a TextEncoder calls one; every token is the first of the vocabulary."""

    def __init__(self, model_max_length: int) -> None:
        self.model_max_length = model_max_length

    def __call__(self, prompt: str, *, max_length: int, **options: Any) -> Any:
        return SimpleNamespace(input_ids=torch.zeros(1, max_length, dtype=torch.long, device="meta"))
