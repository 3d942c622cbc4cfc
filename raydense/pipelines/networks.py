"""Networks and what belongs to them, loaded with nothing missing, left over or misshapen, and no NaN.

`from_pretrained` alone fills what a file lacks with random values, and warns where nobody looks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from raydense.config import ConfigError
from raydense.core.finite import not_finite
from raydense.core.messages import first_few
from raydense.files.weight_files import misfit, read_json
from raydense.pipelines.configurations import check_configuration, quiet_libraries
from raydense.pipelines.model_folder import ModelFolder, Weights, choose_weights

transformers_logging.disable_progress_bar()  # its bars would break the run's one display

CONFIG = "config.json"
_fitting: set[Any] = set()  # classes, configurations and shapes that were held against each other: a run asks twice


def class_of(name: str) -> Any:
    """A class of diffusers or transformers, which import what is asked for alone."""
    return getattr(diffusers, name, None) or getattr(transformers, name)


def load_network(cls: Any, folder: ModelFolder, *, dtype: torch.dtype, variant: str | None = None) -> Any:
    """A network of diffusers or transformers, on the CPU.

    Args: variant: of its weights, as of `choose_weights`.
    Raises: ConfigError in one line: what cannot be had, is damaged, does not fit, or is not finite.
    """
    check_network(cls, folder, variant)
    weights = weights_of(cls, folder, variant, fetch=True)
    try:
        with quiet_libraries():
            network, info = cls.from_pretrained(
                folder.path,
                torch_dtype=dtype,
                use_safetensors=True,
                variant=weights.variant if weights else variant,
                output_loading_info=True,
                **folder.where,
            )
    except Exception as error:  # the libraries', the hub's client's and the operating system's: no common base
        raise folder.cannot_be_loaded(error) from None
    source = weights or folder
    if problems := _reported(info):  # of files that were not here before
        raise ConfigError(f"{source} is not this {cls.__name__}; {problems}")
    if names := not_finite(network.state_dict()):
        read_as = str(dtype).removeprefix("torch.")
        advice = "" if dtype == torch.float32 else "take float32, or "
        raise ConfigError(f"{source} has NaN or infinity as {read_as} in {first_few(names)}; {advice}download it again")
    return network


def load_part(load: Callable[..., Any], folder: ModelFolder, *, vocabulary: bool = False) -> Any:
    """What `load` makes of a folder without weights: a tokenizer, a processor, a scheduler's configuration.

    Args: vocabulary: whether it needs one.
    Raises: ConfigError in one line.
    """
    folder.check_files(vocabulary=vocabulary and folder.is_local)
    try:
        with quiet_libraries():
            part = load(folder.path, **folder.where)
    except Exception as error:  # as above, and tokenizers raises Exception itself
        raise folder.cannot_be_loaded(error) from None
    if not folder.is_local:  # its files are here now
        folder.check_files(vocabulary=vocabulary)
    return part


# -- before anything is loaded -------------------------------------------------------------------------------------


def weights_of(cls: Any, folder: ModelFolder, variant: str | None = None, *, fetch: bool = False) -> Weights | None:
    """As `choose_weights`, by the names of the class's library."""
    stem = "model" if issubclass(cls, PreTrainedModel) else "diffusion_pytorch_model"
    return choose_weights(folder, stem, variant, fetch=fetch)


def check_described(cls: Any, folder: ModelFolder) -> None:
    """Holds a folder's small files, and its configuration, against its network.

    Raises: ConfigError with the file, and the key.
    """
    folder.check_files()
    if (path := folder.find(CONFIG)) is not None:
        check_configuration(cls, read_json(path), folder.named(CONFIG))


def check_network(cls: Any, folder: ModelFolder, variant: str | None = None) -> Weights | None:
    """Holds a folder's files, its configuration, and what its weights say of themselves against their network.

    Returns: the weights that will be loaded, of which no tensor was read; None if they are not on this machine.
    Raises: ConfigError with the file, and the key, or the tensors that are missing, left over or misshapen.
    """
    check_described(cls, folder)
    return check_weights(cls, folder, variant)


def check_weights(cls: Any, folder: ModelFolder, variant: str | None = None) -> Weights | None:
    """As `check_network`, of a folder whose configuration has been checked."""
    weights = weights_of(cls, folder, variant)
    shapes = weights.shapes() if weights else None
    if weights is None or shapes is None:
        return None
    path = folder.find(CONFIG)
    described = cls, path and path.read_bytes(), weights.is_index, tuple(shapes.items())
    if path and described in _fitting:
        return weights
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    if issubclass(cls, PreTrainedModel):
        try:
            problems = _misfit_of_transformers(cls, folder, tensors)
        except Exception as error:  # of a configuration that builds a network, and does not load one
            raise folder.cannot_be_loaded(error) from None
    else:
        problems = _misfit_of_diffusers(cls, folder, tensors, weights.is_index)
    if problems:
        raise ConfigError(f"{weights} is not this {cls.__name__}; {problems}")
    _fitting.add(described)
    return weights


def _misfit_of_transformers(cls: Any, folder: ModelFolder, tensors: dict[str, Tensor]) -> str:
    """As the library would load tensors of these names and shapes: it knows old names and harmless ones."""
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    with quiet_libraries():
        network, info = cls.from_pretrained(
            None,
            config=cls.config_class.from_pretrained(folder.path, **folder.where),
            state_dict=tensors,
            device_map={"": "meta"},
            ignore_mismatched_sizes=True,  # they are in the report
            output_loading_info=True,
        )
    own = network.state_dict()
    misshapen = [  # transformers 4 reports the names alone
        (entry, shapes.get(entry, ()), own[entry].shape) if isinstance(entry, str) else entry
        for entry in info["mismatched_keys"]
    ]
    return _reported({**info, "mismatched_keys": misshapen})


def _misfit_of_diffusers(cls: Any, folder: ModelFolder, tensors: dict[str, Tensor], are_shards: bool) -> str:
    with quiet_libraries(), torch.device("meta"):
        network = cls.from_config(cls.load_config(folder.path, **folder.where))
    if not are_shards:  # as the library: shards are younger than the names that it translates
        network._fix_state_dict_keys_on_load(tensors)
    found, expected = ({n: t.shape for n, t in side.items()} for side in (tensors, network.state_dict()))
    return misfit(found, expected)


def _reported(info: Mapping[str, Any]) -> str:
    """What a library says of a loading, in the words of `misfit`."""
    shapes = {name: (tuple(found), tuple(wanted)) for name, found, wanted in info["mismatched_keys"]}
    missing, surplus = (dict.fromkeys(info[f"{kind}_keys"], ()) for kind in ("missing", "unexpected"))
    found = {**surplus, **{name: pair[0] for name, pair in shapes.items()}}
    expected = {**missing, **{name: pair[1] for name, pair in shapes.items()}}
    return misfit(found, expected)
