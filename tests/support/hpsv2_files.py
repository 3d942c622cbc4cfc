"""An HPSv2 checkpoint with random weights, in its own format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from raydense.rewards.hpsv2 import ARCHITECTURE, open_clip

SMALL: dict[str, Any] = {  # in the place of ViT-H-14
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


def write_hpsv2(path: Path, device: str = "cpu") -> Path:
    """3.9 GB, unless the architecture is replaced by a small one. Args: device: where it is drawn."""
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        model = open_clip(False).create_model(ARCHITECTURE)
        if model.visual.conv1.weight.shape[0] < 100:  # so small a network hardly sees its input otherwise
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
    torch.save({"epoch": 1, "state_dict": {name: tensor.cpu() for name, tensor in model.state_dict().items()}}, path)
    return path
