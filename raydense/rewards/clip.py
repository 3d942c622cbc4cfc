"""The general CLIP scorer: cosine similarity of image and prompt under any CLIP-type model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import CLIPModel, CLIPProcessor

from raydense.core.types import FloatArray
from raydense.pipelines.model_folder import ModelFolder
from raydense.pipelines.networks import load_network, load_part


class ClipScorer:
    """Float32, in batches; text embeddings are computed once a prompt.

    Args:
        name: in metrics.
        model, processor: a transformers CLIPModel, and what prepares images and prompts for it.
        batch_size: images a forward pass.
    """

    def __init__(self, name: str, model: Any, processor: Any, *, batch_size: int = 64, device: torch.device) -> None:
        self.name = name
        self._batch_size, self._device = batch_size, device
        self._text: dict[str, torch.Tensor] = {}
        self._model, self._processor = model.requires_grad_(False).eval().to(device), processor
        self._tokens = min(processor.tokenizer.model_max_length, model.config.text_config.max_position_embeddings)

    @torch.no_grad()
    def score(self, images: NDArray[np.uint8], prompts: Sequence[str]) -> FloatArray:
        """images uint8 [N, h, w, 3] and N prompts → cosine similarity, float32 [N]."""
        scores = [
            self._score_batch(images[i : i + self._batch_size], prompts[i : i + self._batch_size])
            for i in range(0, len(images), self._batch_size)
        ]
        return np.concatenate(scores)

    def _score_batch(self, images: NDArray[np.uint8], prompts: Sequence[str]) -> FloatArray:
        pixels = self._processor.image_processor(images=list(images), return_tensors="pt").pixel_values
        vision = self._model.vision_model(pixel_values=pixels.to(self._device)).pooler_output
        image = torch.nn.functional.normalize(self._model.visual_projection(vision), dim=-1)
        text = torch.stack([self._embed_text(prompt) for prompt in prompts])
        similarity: FloatArray = (image * text).sum(-1).float().cpu().numpy()
        return similarity

    def _embed_text(self, prompt: str) -> torch.Tensor:
        if prompt not in self._text:
            tokenizer, length = self._processor.tokenizer, self._tokens
            tokens = tokenizer(prompt, truncation=True, max_length=length, return_tensors="pt").to(self._device)
            pooled = self._model.text_model(**tokens).pooler_output
            self._text[prompt] = torch.nn.functional.normalize(self._model.text_projection(pooled), dim=-1)[0]
        return self._text[prompt]


def load_clip_scorer(
    name: str, model: str, *, revision: str | None = None, batch_size: int = 64, device: torch.device
) -> ClipScorer:
    """The scorer of a hub id, directory or pkg://… of a transformers CLIPModel with its processor.

    Raises: ConfigError naming the model that cannot be had, or the file of it that cannot be used.
    """
    folder = ModelFolder(f"scorer {name}: model", model, revision)
    network = load_network(CLIPModel, folder, dtype=torch.float32)
    processor = load_part(CLIPProcessor.from_pretrained, folder, vocabulary=True)
    return ClipScorer(name, network, processor, batch_size=batch_size, device=device)
