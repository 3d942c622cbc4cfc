"""What a check of this machine found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One finding; `ok` is False where a run would fail or mislead."""

    name: str
    ok: bool
    detail: str
