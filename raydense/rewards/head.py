"""The head that ImageReward and the LAION aesthetic predictor share."""

from __future__ import annotations

from torch import nn


def regression_head(width: int) -> nn.Sequential:
    """[N, width] → [N, 1]: five affine maps, as released; dropout is off, and there is no activation."""
    return nn.Sequential(
        nn.Linear(width, 1024),
        nn.Dropout(0.2),
        nn.Linear(1024, 128),
        nn.Dropout(0.2),
        nn.Linear(128, 64),
        nn.Dropout(0.1),
        nn.Linear(64, 16),
        nn.Linear(16, 1),
    )
