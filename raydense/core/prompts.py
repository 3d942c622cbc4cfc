"""Prompt sets: read from a file; which prompt a group of a stage has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from raydense.core.locations import resolve
from raydense.core.seeding import generator


def read_prompts(location: str) -> tuple[str, ...]:
    """Reads a UTF-8 text file, one prompt a line; surrounding blanks go.

    Raises: ValueError naming the file and the line of an empty prompt, or if there is none at all.
    """
    try:
        lines = Path(resolve(location)).read_text("utf-8").splitlines()
    except OSError as error:
        raise ValueError(
            f"{location}: cannot be read ({error.strerror or error}); give a text file of prompts"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{location}: byte {error.start} is not UTF-8; save it as UTF-8") from None
    prompts = tuple(line.strip() for line in lines)
    if empty := [number for number, prompt in enumerate(prompts, 1) if not prompt]:
        raise ValueError(f"{location}: line {empty[0]} is empty; remove it")
    if not prompts:
        raise ValueError(f"{location}: holds no prompt; write one a line")
    return prompts


def prompt_at(prompts: Sequence[str], group_number: int, run_seed: int) -> str:
    """The prompt of the run's group_number-th group: seeded, shuffled passes over the set (METHOD §4)."""
    pass_number, position = divmod(group_number, len(prompts))
    order = torch.randperm(len(prompts), generator=generator(run_seed, "prompts", pass_number))
    return prompts[int(order[position])]


def evenly_spaced(prompts: Sequence[str], count: int) -> tuple[str, ...]:
    """At most `count` prompts, evenly spaced through the set."""
    if count >= len(prompts):
        return tuple(prompts)
    return tuple(prompts[i * len(prompts) // count] for i in range(count))
