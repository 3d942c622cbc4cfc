"""CPU threads of a role."""

from __future__ import annotations

import pytest
import torch

from raydense.core.threads import cpu_threads


def test_the_block_has_its_threads_and_the_number_before_comes_back() -> None:
    before = torch.get_num_threads()
    with cpu_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        with pytest.raises(KeyError), cpu_threads(before + 2):
            raise KeyError
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
