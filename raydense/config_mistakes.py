"""What pydantic finds wrong with a configuration, in a line a problem: field, value, what is allowed, what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

from raydense.config_files import BASE, DEFAULT_PRESET, closest
from raydense.sections.base import Section

_OF_A_UNION = re.compile(r"constrained-|literal\[|(bool|int|float)$")  # in a location, of what may be several kinds


def explain_all(
    problems: Iterable[Any], section: type[Section], whole: Mapping[str, Any], source: str
) -> Iterator[str]:
    """A line for all that is missing, and one for each other problem that pydantic found.

    Args: section: that was validated. whole: its values. source: what they are of.
    """
    missing = []
    for item in _one_of_each(problems):
        if item["type"] in ("missing", "union_tag_not_found"):
            missing.append(_walk(section, item["loc"])[0] + (".kind" if item["type"] != "missing" else ""))
        else:
            yield _explain(section, item)
    lacking = [name for name in missing if name.count(".") < 2 and not _has(whole, name)]
    them = "it" if len(missing) == 1 else "them"
    if lacking:
        supplied = them if lacking == missing else ", ".join(lacking)
        yield (
            f"{source} lacks {', '.join(missing)}; add {them}, or put `{BASE}: {DEFAULT_PRESET}` at its top, "
            f"which supplies {supplied}"
        )
    elif missing:
        verb = "is" if len(missing) == 1 else "are"
        yield f"{', '.join(missing)} {verb} missing; add {them} to the configuration"


def _one_of_each(problems: Iterable[Any]) -> list[Any]:
    """Pydantic tells of each kind of value that a setting may have why it is not that: here one problem a setting."""
    found: dict[tuple[Any, ...], Any] = {}
    for item in problems:
        loc = tuple(part for part in item["loc"] if not (isinstance(part, str) and _OF_A_UNION.match(part)))
        if loc in found:
            found[loc]["msg"] += f", or {item['msg'].removeprefix('Input should be ')}"
        else:
            found[loc] = {**item, "loc": loc}
    return list(found.values())


def _has(values: Any, name: str) -> bool:
    for part in name.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return False
        values = values[part]
    return True


def _explain(section: type[Section], item: Any) -> str:
    """A problem, as one line naming field, value and what is allowed."""
    location, names = _walk(section, item["loc"])
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        return f"{location} is not a setting; allowed here: {', '.join(names)}{closest(str(item['loc'][-1]), names)}"
    if item["type"] == "union_tag_invalid":
        return f"{location}.kind={item['ctx']['tag']!r}: input should be one of {item['ctx']['expected_tags']}"
    if item["input"] is None and item["type"] in ("model_type", "model_attributes_type"):
        return f"{location} is empty; give its settings, or remove it where a base has them"
    if item["type"] == "value_error":
        return f"{location}: {message}" if location else message
    return f"{location}={item['input']!r}: {message[0].lower()}{message[1:]}"


def _walk(section: type[Section], loc: tuple[Any, ...]) -> tuple[str, list[str]]:
    """A location as the user wrote it (pydantic adds a scorer's kind to it), and the settings beside its last part."""
    shown: list[str] = []
    beside: list[type[Section]] = [section]
    inside: list[type[Section]] = [section]
    for part in loc:
        if tagged := [m for m in inside if "kind" in m.model_fields and part in _kinds(m)]:
            inside = tagged
            continue
        shown.append(str(part))
        if isinstance(part, str):
            beside = inside
            inside = [s for m in beside if part in m.model_fields for s in _sections(m.model_fields[part].annotation)]
    return ".".join(shown), [name for model in beside for name in model.model_fields]


def _kinds(model: type[Section]) -> tuple[Any, ...]:
    return get_args(model.model_fields["kind"].annotation)


def _sections(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for argument in get_args(annotation) for section in _sections(argument)]
