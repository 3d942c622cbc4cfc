"""Devices, as a configuration names them."""

from __future__ import annotations

import torch

from raydense.config import ConfigError


def resolve_device(name: str, setting: str) -> torch.device:
    """`auto`: the GPU that this process sees, else the CPU. A GPU has its number: one device, one name.

    Args: setting: that names it. Raises: ConfigError if this process has no such device.
    """
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if seen else "cpu"
    device = torch.device("cuda", 0) if name == "cuda" else torch.device(name)
    if device.type == "cuda" and device.index >= seen:
        here = "1 GPU, cuda:0" if seen == 1 else f"{seen} GPUs, up to cuda:{seen - 1}" if seen else "no GPU"
        raise ConfigError(f"{setting}={name}: this process sees {here}; set auto or cpu, or run where there is one")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"{setting}={name}: this process sees no GPU of Apple's; set auto or cpu")
    return device
