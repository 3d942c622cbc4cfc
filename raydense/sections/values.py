"""Values on a command line: `--set KEY=VALUE`, `--grid KEY=VALUE,VALUE` and `--scorer VALUE` are read by one rule.

A value is what it says, not a YAML document: `run #7`, `C: x`, `- a`, `*a` and `no` are texts. `null`, `true`, `false`
and numbers (YAML 1.2's: 010 is ten, and 1:30 is no number) are what they are, unless the setting is a text. Blanks
around it go. What begins with [, {, ' or " is YAML: a list, a mapping, or a text as it stands between the quotes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

from raydense.core.messages import one_line
from raydense.sections.base import Section

BLANKS = " \t\r\n"
HASH = "\U0010fffd"  # a private character that no text has: YAML would begin a comment at ` #`
NULL = ("null", "Null", "NULL", "~")
TRUTH = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.?(inf|Inf|INF)|\.?(nan|NaN|NAN)")


class UniqueKeys(yaml.SafeLoader):
    """PyYAML's safe loader, which would let the last of equal keys win in silence."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(problem="a key is no text", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value!r} is there twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Values(UniqueKeys):
    """A value that is YAML. No anchors and tags: a text that begins with &, * or ! would lose its beginning."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 - PyYAML's, which are of YAML 1.1

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None or event.tag is not None:
            raise yaml.composer.ComposerError(problem="&, * and ! begin no value", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_text(self, node: Any) -> Any:
        text = node.value.replace(HASH, "#")
        return text if node.style else _unquoted(text)


_Values.add_constructor("tag:yaml.org,2002:str", _Values.construct_text)


def read_value(text: str, *, as_text: bool = False) -> Any:
    """What a value says.

    Args: as_text: whether the setting is a text, which `7`, `1e5` and `true` then are, too.
    Raises: ValueError for none, and for YAML that is not valid.
    """
    text = text.strip(BLANKS)
    if not text.startswith(("[", "{", "'", '"')):
        return text if as_text and text and text not in NULL else _unquoted(text)
    try:
        return yaml.load(text.replace("#", HASH), Loader=_Values)
    except yaml.YAMLError as error:
        raise _invalid(error, f"; a text that begins with {text[0]} goes between quotes") from None


def split_values(text: str) -> list[str]:
    """The values of a list with commas, each as it is written; a comma inside brackets or quotes separates none.

    Raises: ValueError.
    """
    try:
        node: Any = yaml.compose(f"[{text}]".replace("#", HASH), Loader=_Values)
    except yaml.YAMLError as error:
        raise _invalid(error) from None
    return [text[item.start_mark.index - 1 : item.end_mark.index - 1] for item in node.value]


def takes_text(annotation: Any, keys: Sequence[str]) -> bool:
    """Whether what `keys` lead to inside a section is a text, whatever it looks like."""
    found = [annotation]
    for key in keys:
        found = [inner for outer in found for inner in _inside(outer, key)]
    return bool(found) and all(map(_is_text, found))


def _unquoted(text: str) -> Any:
    """A value without quotes. Raises: ValueError if it is empty."""
    if not text:
        raise ValueError("a value is missing; give one, null for none, or '\"\"' for an empty text")
    if text in NULL:
        return None
    if text in TRUTH:
        return TRUTH[text]
    if INT.fullmatch(text):
        return int(text, 0 if text[1:2] in ("o", "x") else 10)
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan")) if FLOAT.fullmatch(text) else text


def _invalid(error: yaml.YAMLError, advice: str = "") -> ValueError:
    problem = str(getattr(error, "problem", None) or getattr(error, "reason", "")).replace(HASH, "#")
    return ValueError(f"the value is not valid YAML ({one_line(ValueError(problem))}){advice}")


def _inside(annotation: Any, key: str) -> list[Any]:
    """What a key may lead to: a section's setting, a mapping's value, or either of what a union is made of."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation.model_fields[key].annotation] if key in annotation.model_fields else []
    if get_origin(annotation) is dict:
        return [get_args(annotation)[1]]
    return [found for part in get_args(annotation) for found in _inside(part, key)]


def _is_text(annotation: Any) -> bool:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _is_text(parts[0])
    if origin is Literal:
        return all(isinstance(part, str) for part in parts)
    if origin in (Union, UnionType):
        return all(_is_text(part) for part in parts if part is not NoneType)
    return annotation is str
