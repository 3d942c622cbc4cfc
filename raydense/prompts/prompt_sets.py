"""Prompt sets: read from wherever they are; which prompt a group of a stage has."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from raydense.core.messages import first_few
from raydense.core.seeding import generator
from raydense.core.text import half_character
from raydense.files.locations import resolve
from raydense.prompts.sources import Entry, read_entries

SHOWN = 5  # positions or names in a note or an error


@dataclass(frozen=True)
class PromptSet:
    """The prompts in their order, each once, and what was left out on the way: one line a note."""

    prompts: tuple[str, ...]
    notes: tuple[str, ...] = ()


def load_prompts(location: str) -> PromptSet:
    """Reads a prompt set; surrounding blanks of a prompt go, and so do duplicates and blank lines at the end.

    Args:
        location: a file (path or pkg://package/path), by the end of its name:
                .txt    one prompt a line (also without an ending)
                .json   a list of prompts or of {"prompt": …}, or {prompt: {"category": …}}
                .jsonl  one {"prompt": …} a line
                .csv    column `prompt`
                .parquet  column `prompt`
            or a built-in set:
                set://paper-train, set://paper-unseen    the four single prompts each (METHOD §6)
                set://hpsv2-train, set://hpsv2-benchmark  from the hub, or from a directory: `…?dir=/path`
            Then, optionally, `#` and selections joined by `&`: `index=0` (one prompt alone, of what is left after
            the others), `category=Colors` (JSON with categories), `style=anime` (the benchmark).

    Raises: ValueError in one line, naming the location, the place in it, and what to do.
    """
    source, selection = split_location(location)
    try:
        entries, notes = read_entries(source)
        index = selection.pop("index", None)
        found = _prompt_set(location, _selected(entries, selection), notes)
        if index is None:
            return found
        return PromptSet((found.prompts[_checked_index(index, len(found.prompts))],), found.notes)
    except ValueError as error:
        raise ValueError(f"{location}: {error}") from None


def load_by_label(location: str) -> dict[str, PromptSet]:
    """As load_prompts, a set a style or category of the source; one under the empty label where it has neither.

    Raises: as load_prompts.
    """
    source, selection = split_location(location)
    if "index" in selection:
        return {"": load_prompts(location)}
    by_label: dict[str, list[Entry]] = {}
    try:
        entries, notes = read_entries(source)
        for entry in _selected(entries, selection):
            by_label.setdefault(next(iter(entry.labels.values()), ""), []).append(entry)
        sets = {label: _prompt_set(location, chosen, []) for label, chosen in by_label.items()}
    except ValueError as error:
        raise ValueError(f"{location}: {error}") from None
    first = next(iter(sets))
    return {**sets, first: PromptSet(sets[first].prompts, (*(f"{location}: {n}" for n in notes), *sets[first].notes))}


def read_prompts(location: str) -> tuple[str, ...]:
    """The prompts alone; see load_prompts."""
    return load_prompts(location).prompts


def file_of(location: str) -> Path | None:
    """The file that a location reads; None where that is a set or not there."""
    try:
        path = Path(resolve(split_location(location)[0]))
    except FileNotFoundError:
        return None
    return path if path.is_file() else None


def absolute(location: str) -> str:
    """The location of a file whatever the current directory is; a set, or a package's file, as it is."""
    source = split_location(location)[0]
    return location if "://" in source else f"{Path(source).absolute()}{location[len(source) :]}"


def prompt_at(prompts: Sequence[str], group_number: int, run_seed: int) -> str:
    """The prompt of the run's group_number-th group: seeded, shuffled passes over the set (METHOD §4)."""
    pass_number, position = divmod(group_number, len(prompts))
    return prompts[_pass_order(len(prompts), pass_number, run_seed)[position]]


@lru_cache(maxsize=8)
def _pass_order(count: int, pass_number: int, run_seed: int) -> list[int]:
    order: list[int] = torch.randperm(count, generator=generator(run_seed, "prompts", pass_number)).tolist()
    return order


def evenly_spaced(prompts: Sequence[str], count: int) -> tuple[str, ...]:
    """At most `count` prompts, evenly spaced through the set."""
    if count >= len(prompts):
        return tuple(prompts)
    return tuple(prompts[i * len(prompts) // count] for i in range(count))


def report_truncated(prompts: Sequence[str], tokenizer: Any) -> list[tuple[int, str, str]]:
    """The prompts of which the model reads only a beginning: (index, prompt, what is cut off, as it is tokenized).

    Args:
        tokenizer: the pipeline's own, a transformers tokenizer whose model_max_length (77) counts the two markers.
    """
    report = []
    room = tokenizer.model_max_length - 2
    for index, prompt in enumerate(prompts):
        tokens = tokenizer(prompt, add_special_tokens=False, truncation=False, verbose=False).input_ids
        if len(tokens) > room:
            report.append((index, prompt, tokenizer.decode(tokens[room:]).strip()))
    return report


def truncation_notes(prompts: Sequence[str], tokenizer: Any) -> list[str]:
    """One line on each of the first prompts that are too long for the model, then how many more there are."""
    room = tokenizer.model_max_length - 2
    numbers = [n for n, prompt in enumerate(prompts, 1) if len(prompt.encode()) > room]  # a token is a byte or more
    cut_off = report_truncated([prompts[n - 1] for n in numbers], tokenizer)
    report = [(numbers[i], prompt, cut) for i, prompt, cut in cut_off]
    notes = [f"prompt {n}: the model reads {room} tokens of {p!r}; cut off: {cut!r}" for n, p, cut in report[:SHOWN]]
    return notes + ([f"{len(report) - SHOWN} more prompts are cut off"] if len(report) > SHOWN else [])


def split_location(location: str) -> tuple[str, dict[str, str]]:
    """Location without and with its selections; a `#` that none follows belongs to the path."""
    source, _, fragment = location.rpartition("#")
    if not source or not re.match(r"[a-z]+=", fragment):
        return location, {}
    pairs = (part.partition("=") for part in fragment.split("&"))
    return source, {key.strip(): value.strip() for key, _, value in pairs}


def _selected(entries: Sequence[Entry], selection: dict[str, str]) -> list[Entry]:
    """The entries whose labels have the selected values. Raises: ValueError naming what there is to select."""
    chosen = list(entries)
    for key, wanted in selection.items():
        known = list(dict.fromkeys(entry.labels[key] for entry in entries if key in entry.labels))
        if not known:
            allowed = ["index", *sorted({label for entry in entries for label in entry.labels})]
            raise ValueError(f"#{key}= selects nothing here; allowed: {', '.join(allowed)}")
        if wanted not in known:
            raise ValueError(f"#{key}={wanted} is not here; allowed: {', '.join(known)}")
        chosen = [entry for entry in chosen if entry.labels.get(key) == wanted]
    return chosen


def _prompt_set(location: str, entries: Sequence[Entry], notes: Sequence[str]) -> PromptSet:
    """Each prompt once, with the notes on the source and on its duplicates. Raises: as _distinct."""
    prompts, duplicates = _distinct(entries)
    if duplicates:
        noun = "duplicate" if len(duplicates) == 1 else "duplicates"
        notes = [*notes, f"{len(duplicates)} {noun} dropped: {first_few(duplicates, SHOWN)}"]
    return PromptSet(tuple(prompts), tuple(f"{location}: {note}" for note in notes))


def _distinct(entries: Sequence[Entry]) -> tuple[list[str], list[str]]:
    """The prompts, each once, and where the others were.

    Raises: ValueError for one that is empty or no text, or if there is none.
    """
    prompts: dict[str, None] = {}
    duplicates = []
    for entry in entries:
        prompt = entry.prompt.strip()
        if not prompt:
            raise ValueError(f"{entry.where} is empty; remove it")
        if half := half_character(prompt):
            raise ValueError(f"{entry.where} holds {half}, half of a character; write the whole one")
        if prompt in prompts:
            duplicates.append(entry.where)
        prompts[prompt] = None
    if not prompts:
        raise ValueError("holds no prompt; give at least one")
    return list(prompts), duplicates


def _checked_index(text: str, count: int) -> int:
    if not text.isascii() or not text.isdigit() or int(text) >= count:
        raise ValueError(f"#index={text} is not one of its {count} prompts; allowed: 0 to {count - 1}")
    return int(text)
