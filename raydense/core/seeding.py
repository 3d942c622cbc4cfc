"""Every random draw of a run: a generator derived from (run seed, purpose, indices), never a shared stream.

So a draw does not depend on what was drawn before it, by whom, or how often.
"""

from __future__ import annotations

import hashlib

import torch


def derive_seed(run_seed: int, purpose: str, *indices: int) -> int:
    """A 63-bit seed that is a function of its arguments alone (SHA-256 of their text)."""
    text = "/".join([str(run_seed), purpose, *map(str, indices)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(run_seed: int, purpose: str, *indices: int) -> torch.Generator:
    """A CPU generator for one purpose; devices receive what it draws, so that they draw the same."""
    return torch.Generator().manual_seed(derive_seed(run_seed, purpose, *indices))
