"""The LAION aesthetic score (v2): a linear head on the CLIP ViT-L/14 embedding of the image; the prompt is ignored.

Source: github.com/christophschuhmann/improved-aesthetic-predictor, `simple_inference.py`. Its head has no activations,
so its five layers are one affine map. Pictures go through transformers' CLIP processor, which differs from the Pillow
resize used there by one 8-bit level in a few pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from raydense.config import ConfigError
from raydense.core.types import FloatArray
from raydense.pipelines.model_folder import ModelFolder
from raydense.pipelines.networks import load_network, load_part
from raydense.rewards.head import regression_head
from raydense.rewards.weights import check_fit, load_strictly, read_state_dict

HEAD = "sac+logos+ava1-l14-linearMSE.pth"
HEAD_SOURCE = "https://github.com/christophschuhmann/improved-aesthetic-predictor"
CLIP_MODEL = "openai/clip-vit-large-patch14"


class AestheticHead(nn.Module):
    """Unit CLIP embedding [N, D] → score [N]; D = 768 for the released one. Its state dict has the released names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = regression_head(width)

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        score: torch.Tensor = self.layers(embedding).squeeze(-1)
        return score


class AestheticScorer:
    """Loaded once, float32, in batches; the score is about 1 (poor) to 10.

    Args:
        name: in metrics.
        clip_model: hub id, directory or pkg://… of a transformers CLIP model with its image processor.
        head: local path of the head's weights.
        batch_size: images a forward pass.

    Raises: ConfigError naming the model or the head that cannot be had, and where to get it, or the file that cannot
        be used.
    """

    def __init__(
        self,
        name: str,
        *,
        clip_model: str = CLIP_MODEL,
        head: str,
        revision: str | None = None,
        batch_size: int = 64,
        device: torch.device,
    ) -> None:
        self.name = name
        self._batch_size, self._device = batch_size, device
        head_state = _read_head(name, head)
        folder = ModelFolder(f"scorer {name}: clip_model", clip_model, revision)
        clip = load_network(CLIPModel, folder, dtype=torch.float32)
        self._processor: Any = load_part(CLIPImageProcessor.from_pretrained, folder)
        self._head = AestheticHead(clip.config.projection_dim)
        load_strictly(self._head, head_state, f"scorer {name}: head={head}")
        self._vision, self._projection = clip.vision_model, clip.visual_projection  # without the text half
        for module in (self._vision, self._projection, self._head):
            module.requires_grad_(False).eval().to(device)

    @torch.no_grad()
    def score(self, images: NDArray[np.uint8], prompts: Sequence[str]) -> FloatArray:
        """images uint8 [N, h, w, 3] → float32 [N]; the N prompts are not looked at."""
        parts = [self._score_batch(images[i : i + self._batch_size]) for i in range(0, len(images), self._batch_size)]
        return np.concatenate(parts)

    def _score_batch(self, images: NDArray[np.uint8]) -> FloatArray:
        pixels = self._processor(images=list(images), return_tensors="pt").pixel_values
        pooled = self._vision(pixel_values=pixels.to(self._device)).pooler_output
        embedding = nn.functional.normalize(self._projection(pooled), dim=-1)
        scores: FloatArray = self._head(embedding).cpu().numpy()
        return scores


def check_head(name: str, head: str, clip: ModelFolder) -> None:
    """Holds a scorer's head against its CLIP model's configuration, where that is here. Raises: ConfigError."""
    state = _read_head(name, head)
    if clip.find("config.json") is not None:
        width = CLIPConfig.from_pretrained(clip.path, **clip.where).projection_dim
        check_fit(AestheticHead(width), state, f"scorer {name}: head={head}")


def _read_head(name: str, head: str) -> dict[str, torch.Tensor]:
    path = Path(head).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"scorer {name}: head={head} does not exist; download {HEAD} from {HEAD_SOURCE} and give its path"
        )
    return read_state_dict(path, f"scorer {name}: head={head}")
