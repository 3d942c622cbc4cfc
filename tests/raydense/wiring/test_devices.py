"""Devices, as a configuration names them."""

from __future__ import annotations

import pytest
import torch

from raydense.config import ConfigError
from raydense.wiring.devices import resolve_device


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize(
    ("name", "device"), [("auto", "cuda:0"), ("cuda", "cuda:0"), ("cuda:0", "cuda:0"), ("cpu", "cpu")]
)
def test_one_device_has_one_name(name: str, device: str) -> None:
    assert resolve_device(name, "sampler.device") == torch.device(device)


@pytest.mark.usefixtures("one_gpu")
def test_a_gpu_that_this_process_does_not_see() -> None:
    with pytest.raises(ConfigError, match=r"^learner.device=cuda:1: this process sees 1 GPU, cuda:0; set auto or cpu"):
        resolve_device("cuda:1", "learner.device")
