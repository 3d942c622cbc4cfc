"""Networks and what belongs to them, loaded with nothing missing, left over or misshapen, and no NaN.

`from_pretrained` alone fills what a file lacks with random values, and warns where nobody looks.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextModel, PreTrainedModel
from transformers.utils import logging as transformers_logging

from raydense.config import ConfigError
from raydense.core.messages import first_few, one_line
from raydense.core.weight_files import Shapes, misfit, not_finite
from raydense.diffusion.model_folder import ModelFolder, Weights, choose_weights

transformers_logging.disable_progress_bar()  # its bars would break the run's one display

PARTS: Mapping[str, Any] = {  # of a pipeline, that are built from a configuration
    "scheduler": DDIMScheduler,
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
}
KINDS: Mapping[str, tuple[type, ...]] = {  # of values in JSON
    "text": (str,),
    "a number": (bool, int, float),
    "a list": (list, tuple, np.ndarray),
    "a mapping": (dict,),
}
MORE_THAN_DECLARED = {"sample_size": {"a list"}}  # of a VAE: width and height


def load_network(cls: Any, folder: ModelFolder, *, dtype: torch.dtype, variant: str | None = None) -> Any:
    """A network of diffusers or transformers, on the CPU.

    Args: variant: of its weights, as of `choose_weights`.
    Raises: ConfigError in one line: what cannot be had, is damaged, does not fit, or is not finite.
    """
    try:
        weights = weights_of(cls, folder, variant, fetch=True)
        with _quiet_libraries():
            network, info = cls.from_pretrained(
                folder.path,
                torch_dtype=dtype,
                use_safetensors=True,
                variant=weights.variant if weights else variant,
                output_loading_info=True,
                **folder.where,
            )
    except ConfigError:
        raise
    except Exception as error:  # the libraries', the hub's client's and the operating system's: no common base
        folder.check_files()
        check_fit(cls, folder, variant)
        raise folder.cannot_be_loaded(error) from None
    source = weights or folder
    if problems := _reported(info):
        raise ConfigError(f"{source} is not this {cls.__name__}; {problems}")
    if names := not_finite(network.state_dict()):
        raise ConfigError(
            f"{source} is not finite as {str(dtype).removeprefix('torch.')} in {len(names)}: {first_few(names)}; "
            "download it again, or take float32"
        )
    return network


def load_part(cls: Any, folder: ModelFolder, *, vocabulary: bool = False) -> Any:
    """A tokenizer, processor or scheduler. Args: vocabulary: whether it needs one. Raises: ConfigError in one line."""
    try:
        with _quiet_libraries():
            part = cls.from_pretrained(folder.path, **folder.where)
    except Exception as error:  # as above, and tokenizers raises Exception itself
        folder.check_files(vocabulary=vocabulary)
        raise folder.cannot_be_loaded(error) from None
    folder.check_files(vocabulary=vocabulary)
    return part


# -- before anything is loaded -------------------------------------------------------------------------------------


def weights_of(cls: Any, folder: ModelFolder, variant: str | None = None, *, fetch: bool = False) -> Weights | None:
    """As `choose_weights`, by the names of the class's library."""
    stem = "model" if issubclass(cls, PreTrainedModel) else "diffusion_pytorch_model"
    return choose_weights(folder, stem, variant, fetch=fetch)


def check_fit(cls: Any, folder: ModelFolder, variant: str | None = None) -> Weights | None:
    """Holds what a folder's weights say of themselves against the network that they are for; no tensor is read.

    Returns: the weights that will be loaded; None if they are not on this machine.
    Raises: ConfigError with the file and the names of tensors that are missing, left over or misshapen.
    """
    weights = weights_of(cls, folder, variant)
    shapes = weights.shapes() if weights else None
    if weights is None or shapes is None:
        return None
    compare = _fit_of_transformers if issubclass(cls, PreTrainedModel) else _fit_of_diffusers
    if problems := compare(cls, folder, shapes, weights.is_index):
        raise ConfigError(f"{weights} is not this {cls.__name__}; {problems}")
    return weights


def check_configuration(cls: Any, config: Mapping[str, Any], where: str) -> None:
    """Builds a part of a pipeline from its configuration, without weights.

    Args: where: the file, for errors.
    Raises: ConfigError naming the key that cannot be used.
    """
    declared = {key: hint for key, hint in _declared(cls).items() if key in config}
    for key, hint in declared.items():
        kinds = _kinds(hint) | MORE_THAN_DECLARED.get(key, set())
        if config[key] is not None and not _is_of_a_kind(config[key], kinds):
            raise ConfigError(f"{where}: {key}={config[key]!r} should be {' or '.join(sorted(kinds))}; correct it")
    if (error := _building(cls, config)) is None:
        return
    without = [key for key in sorted(config) if _building(cls, {k: v for k, v in config.items() if k != key}) is None]
    nulls = [key for key, hint in declared.items() if config[key] is None and type(None) not in get_args(hint)]
    for key in (*without, *nulls):  # the first without which it can be built, or that may not be null
        raise ConfigError(f"{where}: {key}={config[key]!r} cannot be used ({one_line(error)}); correct it")
    raise ConfigError(f"{where} does not describe a {cls.__name__} ({one_line(error)}); correct it")


def _fit_of_transformers(cls: Any, folder: ModelFolder, shapes: Shapes, is_sharded: bool) -> str:
    """As the library itself would load tensors of these names and shapes: it knows old names and harmless ones."""
    tensors = {name: torch.empty(tuple(shape), device="meta") for name, shape in shapes.items()}
    with _quiet_libraries():
        try:
            config = cls.config_class.from_pretrained(folder.path, **folder.where)
            _, info = cls.from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                device_map={"": "meta"},
                ignore_mismatched_sizes=True,  # they are in the report
                output_loading_info=True,
            )
        except Exception as error:  # whatever an unusable configuration leads to
            raise ConfigError(f"{folder} cannot be built from its config.json ({one_line(error)}); correct it") from None
    return _reported(info)


def _fit_of_diffusers(cls: Any, folder: ModelFolder, shapes: Shapes, is_sharded: bool) -> str:
    tensors = {name: torch.empty(tuple(shape), device="meta") for name, shape in shapes.items()}
    with _quiet_libraries(), torch.device("meta"):
        network = cls.from_config(cls.load_config(folder.path, **folder.where))
    if not is_sharded:  # as the library: shards are younger than the names that it translates
        network._fix_state_dict_keys_on_load(tensors)
    return misfit(
        {name: tensor.shape for name, tensor in tensors.items()},
        {name: tensor.shape for name, tensor in network.state_dict().items()},
    )


def _reported(info: Mapping[str, Any]) -> str:
    """What a library says of a loading, in the words of `misfit`."""
    shapes = {name: (tuple(found), tuple(wanted)) for name, found, wanted in info["mismatched_keys"]}
    missing, surplus = (dict.fromkeys(info[f"{kind}_keys"], ()) for kind in ("missing", "unexpected"))
    found = {**surplus, **{name: pair[0] for name, pair in shapes.items()}}
    expected = {**missing, **{name: pair[1] for name, pair in shapes.items()}}
    return misfit(found, expected)


# -- a configuration's values ------------------------------------------------------------------------------------


def _building(cls: Any, config: Mapping[str, Any]) -> Exception | None:
    """What building from a configuration raises."""
    try:
        with _quiet_libraries(), torch.device("meta" if issubclass(cls, torch.nn.Module) else "cpu"):
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


def _is_of_a_kind(value: Any, kinds: set[str]) -> bool:
    return not kinds or any(isinstance(value, KINDS[kind]) for kind in kinds)


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """What they would warn of is an error here."""
    before = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(before[0])
        transformers_logging.set_verbosity(before[1])
