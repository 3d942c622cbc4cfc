"""The replay buffer: handles and metadata only; the groups themselves stay where they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

Handle = TypeVar("Handle")


class ReplayBuffer(Generic[Handle]):
    """Uniform draws with replacement over at most `capacity` groups (METHOD §4-5)."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity={capacity} must be at least 1 group")
        self.capacity = capacity
        self._handles: list[Handle] = []

    def __len__(self) -> int:
        return len(self._handles)

    def __getitem__(self, index: int) -> Handle:
        return self._handles[index]

    def replace(self, handles: Sequence[Handle]) -> None:
        """Drops every handle held, which frees what only they kept alive, and holds these."""
        if len(handles) > self.capacity:
            raise ValueError(f"{len(handles)} groups exceed the replay buffer's capacity of {self.capacity}")
        self._handles = list(handles)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Indices of `count` groups, uniform with replacement: int64 [count]."""
        if not self._handles:
            raise ValueError("the replay buffer is empty; collect a stage first")
        return torch.randint(len(self._handles), (count,), generator=generator)
