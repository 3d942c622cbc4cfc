"""One NaN or infinity among many numbers is found, in every precision."""

from __future__ import annotations

import pytest
import torch

from raydense.core.finite import all_finite, not_finite


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_value_is_found(dtype: torch.dtype, value: float) -> None:
    tensor = torch.linspace(-1, 1, 1000).to(dtype).reshape(10, 100)
    assert bool(all_finite(tensor))
    assert not_finite({"a": tensor}) == []
    tensor[7, 3] = value
    assert not bool(all_finite(tensor))
    assert not_finite({"a": torch.ones(2), "b": tensor, "c": tensor[:7]}) == ["b"]


def test_what_cannot_be_infinite_is_passed_over() -> None:
    assert not_finite({"ids": torch.arange(3), "none": torch.zeros(0), "largest": torch.tensor([3e38])}) == []
