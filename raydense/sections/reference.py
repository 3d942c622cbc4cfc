"""What may be set, in words, read off the schema; README.md beside this file has it in tables.

`raydense config --markdown` writes them; `commented` puts the same words into a YAML.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from raydense.sections.base import Section

Schema = Mapping[str, Any]
REQUIRED = "required"
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
SCORERS = "Kinds of scorers: for reward.scorer, reward.monitors and, but for a mixture itself, a mixture's components."
PAGE = """# What may be set

`raydense config --markdown` writes this page, and `raydense config --preset multi-prompt` a configuration with the same
words beside its values. On the command line a setting has its whole name: `--set train.lr=1e-3`. What settings demand
of each other is checked when a configuration is read.

A file with `preset: NAME` at its top holds only what differs from that preset. Sections are merged setting by setting;
a list takes the place of the preset's, and so does a scorer of another kind; `--set` comes after both.
"""


class Setting(NamedTuple):
    """One setting in words. A section inside another has no `allowed` and no `default`: its settings have them."""

    name: str
    allowed: str
    default: str
    what: str

    def __str__(self) -> str:
        if not self.allowed:
            return self.what
        return f"{self.what} [{self.allowed}; {'' if self.default == REQUIRED else 'default '}{self.default}]"


class Reference:
    """The settings of a section and of all that it holds."""

    def __init__(self, root: type[Section]) -> None:
        self.root: Schema = root.model_json_schema()
        self._sections: Mapping[str, Schema] = self.root["$defs"]

    def setting(self, name: str, schema: Schema) -> Setting:
        text = what(schema) or what(self.inner(schema) or {})
        if "$ref" in schema:
            return Setting(name, "", "", text)
        default = schema.get("default", REQUIRED)
        return Setting(name, allowed(schema), default if isinstance(default, str) else json.dumps(default), text)

    def settings(self, section: Schema, prefix: str = "") -> Iterator[Setting]:
        """All but a scorer's kind; those of a section inside this one after it, under their whole names."""
        for name, schema in section["properties"].items():
            if "const" in schema:
                continue
            yield self.setting(f"{prefix}{name}", schema)
            if inner := self.inner(schema):
                yield from self.settings(inner, f"{prefix}{name}.")
            elif inner := self.inner(schema.get("items", {})):
                yield from self.settings(inner, f"{prefix}{name}[].")

    def inner(self, schema: Schema, value: Any = None) -> Schema | None:
        """The section that a setting is, if it is one; a scorer is the one of its value's kind."""
        if "$ref" in schema:
            return self._sections[schema["$ref"].rpartition("/")[2]]
        if "discriminator" in schema and isinstance(value, Mapping):
            return self.inner({"$ref": schema["discriminator"]["mapping"][value["kind"]]})
        return None

    def scorers(self) -> list[tuple[str, Schema]]:
        """Every kind with its section, by name."""
        kinds = {section["properties"].get("kind", {}).get("const"): section for section in self._sections.values()}
        return sorted((kind, section) for kind, section in kinds.items() if kind)


def markdown(root: type[Section]) -> str:
    """A page with a table for every section, and for every kind of scorer."""
    reference = Reference(root)
    sections = {name: reference.inner(schema) for name, schema in reference.root["properties"].items()}
    alone = [reference.setting(name, reference.root["properties"][name]) for name in sections if not sections[name]]
    parts = [PAGE, f"## The run itself\n\n{_table(alone)}"]
    for name, section in sections.items():
        if section:
            parts.append(f"## `{name}`\n\n{what(section)}\n\n{_table(reference.settings(section, f'{name}.'))}")
    parts.append(f"## Scorers\n\n{SCORERS}\n")
    for kind, section in reference.scorers():
        parts.append(f"### `kind: {kind}`\n\n{what(section)}\n\n{_table(reference.settings(section))}")
    return "\n".join(parts)


def what(schema: Schema) -> str:
    """The description of a setting or section, in one line."""
    return " ".join(schema.get("description", "").split())


def allowed(schema: Schema) -> str:
    """What a value may be, such as `integer ≥ 1, auto or null`."""
    *most, last = _alternatives(schema)
    return f"{', '.join(most)} or {last}" if most else last


def _alternatives(schema: Schema) -> list[str]:
    if "anyOf" in schema:
        return [text for one in schema["anyOf"] for text in _alternatives(one)]
    if "enum" in schema:
        return list(schema["enum"])
    if "const" in schema:
        return [schema["const"]]
    if "discriminator" in schema:
        return sorted(schema["discriminator"]["mapping"])
    match schema.get("type"):
        case "boolean":
            return ["true", "false"]
        case "array" if "prefixItems" in schema:
            return [f"[{', '.join(map(allowed, schema['prefixItems']))}]"]
        case "array":
            least = f", at least {schema['minItems']}" if "minItems" in schema else ""
            return [f"list of {allowed(schema['items'])}".removesuffix(" of ") + least]
        case "object":
            return [f"mapping: {schema['rule']}"]
        case "string":
            rule = schema.get("rule") or schema.get("pattern", "").strip("^$")
            return [f"text: {rule}" if rule else "text"]
        case "integer" | "number" | "null" as kind:
            bounds = " and ".join(f"{sign} {schema[bound]:g}" for bound, sign in BOUNDS.items() if bound in schema)
            return [f"{kind} {bounds}".strip()]
    return [""]  # a section


def _table(settings: Iterable[Setting]) -> str:
    head = (Setting("setting", "allowed", "default", "what it is"), Setting("---", "---", "---", "---"))
    rows = (*head, *(setting._replace(name=f"`{setting.name}`") for setting in settings))
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in rows)
