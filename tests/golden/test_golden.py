"""A refactor must reproduce the loss and the gradient; `make_golden.py` says what they are of, and writes them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from safetensors.numpy import load_file

LOSS = 1e-5
GRADIENT = 5e-5  # relative to its norm; the kernels of another CPU alone move it by 1e-5 in float32


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = spec_from_file_location("make_golden", Path(__file__).with_name("make_golden.py"))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def golden(script: ModuleType) -> Mapping[str, np.ndarray]:
    return load_file(script.FILE)


@pytest.fixture(scope="module")
def computed(script: ModuleType, golden: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    return script.compute(golden)


def test_the_file_holds_every_case(script: ModuleType, golden: Mapping[str, np.ndarray]) -> None:
    for case in script.CASES:
        gradients = [name for name in golden if name.startswith(f"{case}/gradient/")]
        assert len(gradients) == 64
        assert any(np.abs(golden[name]).max() > 1e-3 for name in gradients), "nothing to compare"


@pytest.mark.parametrize("case", ["pi_init", "pi_old", "both", "warm_up"])
def test_the_loss_and_its_metrics_are_the_golden_ones(
    case: str, golden: Mapping[str, np.ndarray], computed: Mapping[str, np.ndarray]
) -> None:
    names = [n for n in golden if n.startswith((f"{case}/loss", f"{case}/metric"))]
    assert len(names) == 4
    for name in names:
        tolerance = LOSS if name.endswith("loss") else GRADIENT
        np.testing.assert_allclose(computed[name], golden[name], rtol=tolerance, err_msg=name)


@pytest.mark.parametrize("case", ["pi_init", "pi_old", "both", "warm_up"])
def test_the_gradient_is_the_golden_one(
    case: str, golden: Mapping[str, np.ndarray], computed: Mapping[str, np.ndarray]
) -> None:
    names = sorted(n for n in golden if n.startswith(f"{case}/gradient"))
    assert names == sorted(n for n in computed if n.startswith(f"{case}/gradient"))
    expected, actual = (np.concatenate([t[n].ravel() for n in names]).astype(np.float64) for t in (golden, computed))
    assert np.linalg.norm(actual - expected) <= GRADIENT * np.linalg.norm(expected)
