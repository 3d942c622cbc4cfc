"""What a policy is built with."""

from __future__ import annotations

import pytest
import torch

from raydense.config import load_config
from raydense.wiring.policies import compiles


@pytest.mark.parametrize(
    ("preset", "settings", "device", "expected"),
    [
        ("multi-prompt", [], "cuda:0", True),
        ("multi-prompt", [], "cpu", False),
        ("multi-prompt", ["policy.compile=false"], "cuda:0", False),
        ("tiny", [], "cuda:0", False),
        ("tiny", ["policy.compile=true"], "cpu", True),
    ],
)
def test_a_samplers_network_is_compiled_where_it_pays(
    preset: str, settings: list[str], device: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(None, preset, settings)
    assert compiles(config, torch.device(device)) is expected
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert compiles(config, torch.device(device)) is (expected and config.policy.compile is True)
