"""What stands in a part's `config.json`, held against what the part can be built from."""

from __future__ import annotations

import inspect
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

KINDS: Mapping[str, tuple[type, ...]] = {  # of values in JSON
    "text": (str,),
    "a number": (bool, int, float),
    "a list": (list, tuple, np.ndarray),
    "a mapping": (dict,),
}
TAKEN_TOO = {"sample_size": {"a list"}}  # by a VAE, which does not declare it


def check_configuration(cls: Any, config: Mapping[str, Any], where: str) -> None:
    """Builds a part of a pipeline from its configuration, without weights.

    Args: where: the file, for errors.
    Raises: ConfigError naming the key that cannot be used.
    """
    hints = {key: hint for key, hint in _declared(cls).items() if key in config}
    for key, hint in hints.items():
        kinds = _kinds(hint)
        taken = tuple(one for kind in kinds | TAKEN_TOO.get(key, set()) for one in KINDS[kind])
        if kinds and config[key] is not None and not isinstance(config[key], taken):
            raise ConfigError(f"{where}: {_shown(config, key)} should be {' or '.join(sorted(kinds))}; correct it")
    if (error := _building(cls, config)) is None:
        return
    without = [key for key in sorted(config) if _building(cls, {k: v for k, v in config.items() if k != key}) is None]
    nulls = [key for key, hint in hints.items() if config[key] is None and type(None) not in get_args(hint)]
    for key in (*without, *nulls):  # the first without which it can be built, or that may not be null
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


def _kinds(hint: Any) -> set[str]:
    """The kinds of JSON values that a type stands for; empty where any may do."""
    if hint is Any:
        return set()
    if get_origin(hint) in (Union, UnionType):
        of_each = [_kinds(one) for one in get_args(hint) if one is not type(None)]
        return set().union(*of_each) if all(of_each) else set()
    bare = type(get_args(hint)[0]) if get_origin(hint) is Literal else get_origin(hint) or hint
    return next(({kind} for kind, types in KINDS.items() if bare in types), set())


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
