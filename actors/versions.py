"""The policy versions that samplers may be asked for: the last few that were broadcast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from raydense.core.types import PolicyWeights

Handle = TypeVar("Handle")
LIVE_VERSIONS = 3  # those of two stages' units, and those being judged


class LiveVersions(Generic[Handle]):
    """Handles of weights by version. Args: publish: makes a handle, once for each version."""

    def __init__(self, publish: Callable[[PolicyWeights], Handle]) -> None:
        self._publish = publish
        self._live: dict[int, tuple[str, Handle]] = {}  # version → checksum and handle

    def add(self, weights: PolicyWeights) -> None:
        """Makes a version live, or keeps it so, as the newest; the oldest beyond `LIVE_VERSIONS` is dropped."""
        checksum, handle = self._live.pop(weights.version, ("", None))
        if handle is None or checksum != weights.checksum:
            handle = self._publish(weights)
        self._live[weights.version] = weights.checksum, handle
        for version in list(self._live)[:-LIVE_VERSIONS]:
            del self._live[version]

    def __getitem__(self, version: int) -> Handle:
        if version not in self._live:
            raise RuntimeError(f"weights version {version} is not live; broadcast it before work that names it")
        return self._live[version][1]
