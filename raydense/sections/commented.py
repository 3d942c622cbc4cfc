"""A configuration as YAML with a comment at each setting: what it is, what is allowed, its default."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml

from raydense.sections.base import Section
from raydense.sections.reference import SCORERS, Reference, Schema, what

WIDTH = 112  # of a comment, without what it is indented by
HEADER = """Every setting of a run: what it is [what is allowed; its default].
A file may be shorter: `preset: NAME` at its top names its base, and it holds only what differs."""


def commented_yaml(config: Section) -> str:
    """What `yaml.safe_load` reads as `config.model_dump(mode="json")`; the kinds of scorers are told at the end."""
    reference = Reference(type(config))
    lines = [*_comment(HEADER), ""]
    lines += _mapping(reference, config.model_dump(mode="json"), reference.root, before_section=[""])
    lines += ["", *_comment(SCORERS)]
    for kind, scorer in reference.scorers():
        lines += ["#", f"# kind: {kind}", *_comment(what(scorer), "#   ")]
        for setting in reference.settings(scorer):
            lines += _comment(f"{setting.name}: {setting}", "#   ", "#     ")
    return "\n".join(lines) + "\n"


def _mapping(
    reference: Reference, values: Mapping[str, Any], section: Schema, before_section: Iterable[str] = ()
) -> Iterator[str]:
    for name, schema in section["properties"].items():
        value = values[name]
        # at its kind a scorer says what it is; which kinds there are is told above it
        comment = _comment(what(section) if "const" in schema else str(reference.setting(name, schema)))
        if inner := reference.inner(schema, value):
            yield from (*before_section, *comment, f"{name}:")
            yield from (f"  {line}" for line in _mapping(reference, value, inner))
        elif items := _items(reference, schema, value):
            yield from (*comment, f"{name}:")
            for item, inner in items:
                yield from (f"  {line}" for line in _as_item(_mapping(reference, item, inner)))
        else:
            yield from (*comment, *_dumped(name, value))


def _items(reference: Reference, schema: Schema, value: Any) -> list[tuple[Mapping[str, Any], Schema]]:
    """What a list of sections holds, each with its section; nothing for another list."""
    if "items" not in schema or not isinstance(value, list):
        return []
    return [(item, inner) for item in value if (inner := reference.inner(schema["items"], item))]


def _as_item(lines: Iterable[str]) -> Iterator[str]:
    """Lines of a mapping as an item of a list: the dash is at its first setting, below that one's comment."""
    mark = ""
    for line in lines:
        if not mark and not line.startswith("#"):
            mark = "- "
        yield f"{mark}{line}"
        mark = mark and "  "


def _dumped(name: str, value: Any) -> list[str]:
    flow = None if isinstance(value, list | dict) else False  # a list within a line
    text: str = yaml.safe_dump(
        {name: value}, default_flow_style=flow, sort_keys=False, allow_unicode=True, width=math.inf
    )
    return text.rstrip("\n").split("\n")


def _comment(text: str, first: str = "# ", then: str | None = None) -> list[str]:
    fill = textwrap.TextWrapper(
        WIDTH,
        initial_indent=first,
        subsequent_indent=then or first,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line for paragraph in text.splitlines() for line in fill.wrap(paragraph)]
