"""A configuration's plain values: YAML files, presets, what a file changes of its base, `key=value` overrides."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from raydense.core.messages import one_line
from raydense.sections.base import Section
from raydense.sections.values import UniqueKeys, read_value, takes_text

DEFAULT_PRESET = "tiny"
BASE = "preset"  # the key that names a file's base


class ConfigError(ValueError):
    """Bad input: a setting, a file or a resource that a run cannot start with; the message is one line a problem."""


def preset_names() -> list[str]:
    """Names of the presets in the package, sorted."""
    return sorted(p.name[:-5] for p in resources.files("raydense.presets").iterdir() if p.name.endswith(".yaml"))


def read_preset(name: Any, where: str) -> dict[str, Any]:
    """A preset's values. Args: where: what named it, such as `--preset`. Raises: ConfigError if there is none."""
    if name not in preset_names():
        raise ConfigError(
            f"{where}={name} is unknown; allowed: {', '.join(preset_names())}{closest(str(name), preset_names())}"
        )
    return _parse(resources.files("raydense.presets").joinpath(f"{name}.yaml").read_text("utf-8"), f"preset {name}")


def read_file(path: Path) -> dict[str, Any]:
    """A file's values, without those of its base. Raises: ConfigError for what is no YAML mapping."""
    try:
        return _parse(path.read_text("utf-8"), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give an existing YAML file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text; save it as UTF-8") from None


def with_base(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The values over those of the preset that they name as their base, if they do.

    Args: source: what they are of, for the message. Raises: ConfigError if there is no such preset.
    """
    if BASE not in values:
        return copy.deepcopy(dict(values))
    own = {key: value for key, value in values.items() if key != BASE}
    return merged(read_preset(values[BASE], f"{source}: {BASE}"), own)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes`: mappings are merged key by key, anything else takes the place of what was there.

    So does a mapping of another `kind`, which is another scorer: what is set of the old one means nothing for it.
    """
    result = copy.deepcopy(dict(base))
    for key, value in changes.items():
        old = base.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and value.get("kind") in (None, old.get("kind")):
            result[key] = merged(old, value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def overridden(values: Mapping[str, Any], overrides: Sequence[str], section: type[Section]) -> dict[str, Any]:
    """The values after `key=value` overrides. Args: section: whose they are. Raises: ConfigError for what is none."""
    result = copy.deepcopy(dict(values))
    for override in overrides:
        _apply_override(result, override, section)
    return result


def closest(name: str, names: Sequence[str]) -> str:
    """` (did you mean …?)`, or nothing where no name is like it."""
    match = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {match[0]}?)" if match else ""


def _parse(text: str, source: str) -> dict[str, Any]:
    try:
        values = yaml.load(text, Loader=UniqueKeys)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: is not valid YAML: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: must be a mapping of sections, got {type(values).__name__}")
    return values


def _apply_override(values: dict[str, Any], override: str, section: type[Section]) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override!r}: expected key=value, such as --set seed=1")
    if key.strip() == BASE:
        raise ConfigError(f"--set {override!r}: a base is named by --{BASE}, or by `{BASE}:` at the top of a file")
    *parents, leaf = key.strip().split(".")
    node: Any = values
    for parent in parents:
        node = node.setdefault(parent, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override!r}: {parent} is not a section")
    try:
        node[leaf] = read_value(text, as_text=takes_text(section, [*parents, leaf]))
    except ValueError as error:
        raise ConfigError(f"--set {override!r}: {error}") from None
