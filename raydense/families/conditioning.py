"""What a network is given of prompts beside latents and time: tensors by name, whatever the family."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Conditioning = Mapping[str, Tensor]  # of one prompt, or of N: then each has N rows; names in alphabetical order


def each(conditioning: Conditioning, change: Callable[[Tensor], Tensor]) -> Conditioning:
    """The same names, with each tensor changed."""
    return {name: change(tensor) for name, tensor in conditioning.items()}


def stacked(prompts: Sequence[Conditioning]) -> Conditioning:
    """One row a prompt."""
    return {name: torch.stack([prompt[name] for prompt in prompts]) for name in prompts[0]}


def repeated(prompt: Conditioning, count: int) -> Conditioning:
    """One prompt's, in `count` rows that share its memory."""
    return each(prompt, lambda tensor: tensor.expand(count, *tensor.shape))
