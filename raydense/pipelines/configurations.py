"""What stands in a part's `config.json`, held against what the part can be built from."""

from __future__ import annotations

import inspect
import json
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from diffusers.utils import logging as diffusers_logging
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from raydense.config import ConfigError
from raydense.core.messages import one_line

KINDS: Mapping[Any, str] = {  # of values in JSON, by the types that stand for them in Python
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    tuple: "a list",
    np.ndarray: "a list",
    dict: "a mapping",
}
VALUES: Mapping[str, tuple[type, ...]] = {
    "text": (str,),
    "true or false": (bool, int),
    "a number": (int, float),
    "a list": (list, tuple),
    "a mapping": (dict,),
}
MANY = {"text": "texts", "a number": "numbers"}
_sound: set[tuple[Any, str]] = set()  # classes, and configurations that they were built from: a run asks several times
TAKEN_TOO = {"sample_size": int | tuple[int, int]}  # by a VAE, which does not declare it


def check_configuration(cls: Any, config: Mapping[str, Any], where: str) -> None:
    """Builds a part of a pipeline from its configuration, without weights.

    Args: where: the file, for errors.
    Raises: ConfigError naming the key that cannot be used.
    """
    described = cls, json.dumps(config, sort_keys=True)
    if described in _sound:
        return
    hints = {key: hint for key, hint in _declared(cls).items() if key in config}
    for key, hint in hints.items():
        hint = TAKEN_TOO.get(key, hint)
        if not _fits(config[key], hint):
            raise ConfigError(f"{where}: {_shown(config, key)} should be {' or '.join(_kinds(hint))}; correct it")
    if (error := _building(cls, config)) is None:
        _sound.add(described)
        return
    without = [key for key in sorted(config) if _building(cls, {k: v for k, v in config.items() if k != key}) is None]
    quoted = [key for key in hints if any(isinstance(v, str) and v in str(error) for v in np.ravel(config[key]))]
    nulls = [key for key, hint in hints.items() if config[key] is None and type(None) not in get_args(hint)]
    for key in (*without, *quoted, *nulls):  # without which it can be built, of which the error speaks, or what is null
        raise ConfigError(f"{where}: {_shown(config, key)} cannot be used ({one_line(error)}); correct it")
    raise ConfigError(f"{where} does not describe a {cls.__name__} ({one_line(error)}); correct it")


def _shown(config: Mapping[str, Any], key: str) -> str:
    return f"{key}={reprlib.repr(config[key])}"


def _building(cls: Any, config: Mapping[str, Any]) -> Exception | None:
    """What building from a configuration raises."""
    is_network = issubclass(cls, torch.nn.Module)
    try:
        with quiet_libraries(), torch.device("meta" if is_network else "cpu"):
            if issubclass(cls, PreTrainedModel):
                cls(cls.config_class(**config))
            else:
                cls.from_config(dict(config))
    except Exception as error:  # whatever a wrong value leads to
        return error
    return None


def _declared(cls: Any) -> Mapping[str, Any]:
    """The types of a configuration's keys, as diffusers declares them; transformers holds its own to theirs."""
    if issubclass(cls, PreTrainedModel):
        return {}
    keys = inspect.signature(cls.__init__).parameters
    return {key: hint for key, hint in get_type_hints(cls.__init__).items() if key in keys}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of JSON is of a type; null always may be, since libraries take it where they do not say so."""
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    kind = _kind(hint)
    if value is None or kind is None:
        return value is None or hint is not type(None)
    of_kind, items = isinstance(value, VALUES[kind]), value
    parts = [part for part in get_args(hint) if part is not Ellipsis] if kind == "a list" else []
    return of_kind and (not parts or all(any(_fits(item, part) for part in parts) for item in items))


def _kinds(hint: Any) -> list[str]:
    """A type in words."""
    if get_origin(hint) in (Union, UnionType):
        return sorted({kind for one in get_args(hint) for kind in _kinds(one)})
    kind = _kind(hint)
    parts = sorted({kind for part in get_args(hint) for kind in _kinds(part)}) if kind == "a list" else []
    return [f"a list of {MANY[parts[0]]}" if len(parts) == 1 and parts[0] in MANY else kind] if kind else []


def _kind(hint: Any) -> str | None:
    """Of the values in JSON that a type stands for; None where it is not known."""
    bare = type(get_args(hint)[0]) if get_origin(hint) is Literal else get_origin(hint) or hint
    return KINDS.get(bare)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """What they would warn of is an error here."""
    before = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(before[0])
        transformers_logging.set_verbosity(before[1])
