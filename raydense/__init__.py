"""raydense aligns text-to-image diffusion models with human preference. The Python API, loaded when it is used:

import raydense

run = raydense.train("tiny", "runs/seven", overrides=["seed=7"])
run.metrics("stage").to_pandas()
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raydense.api import Run, train
    from raydense.config import Config, ConfigError, load_config

_HOMES = {
    "Config": "raydense.config",
    "ConfigError": "raydense.config",
    "load_config": "raydense.config",
    "Run": "raydense.api",
    "train": "raydense.api",
}
__all__ = ["Config", "ConfigError", "Run", "load_config", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'raydense' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
