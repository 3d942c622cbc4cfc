"""A text encoder with its tokenizer, one prompt at a time, so that the bits never depend on a batch."""

from __future__ import annotations

from typing import Any

import torch


class TextEncoder:
    """Args: network, tokenizer: of one pipeline, or None where no prompt is encoded."""

    def __init__(self, network: Any, tokenizer: Any) -> None:
        self.network, self.tokenizer = network, tokenizer

    @torch.no_grad()
    def __call__(self, prompt: str, length: int | None = None, **wanted: bool) -> Any:
        """What the network gives for a prompt, padded and cut to `length` tokens; None: to the tokenizer's own.

        Args: wanted: of the network's call, such as output_hidden_states.
        """
        tokens = self.tokenizer(
            prompt,
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length if length is None else length,
            return_tensors="pt",
        )
        return self.network(tokens.input_ids.to(self.network.device), **wanted)


def limit_tokens(tokenizer: Any, positions: int) -> None:
    """Sets the length that prompts are cut to, which transformers takes for boundless where no file says it."""
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
