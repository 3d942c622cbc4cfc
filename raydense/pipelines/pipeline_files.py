"""What a pipeline says of itself: its configuration files, read once, before a weight is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydense.config import ConfigError
from raydense.core.messages import one_line
from raydense.files.hub import probe_hub
from raydense.files.locations import resolve
from raydense.files.weight_files import FileFault, read_json

FAMILIES = ("StableDiffusionPipeline",)  # as model_index.json names them; `stable_diffusion.py` says what it can take
FOLDERS = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")  # of a pipeline directory
FILES = {
    "scheduler": "scheduler/scheduler_config.json",
    "unet": "unet/config.json",
    "vae": "vae/config.json",
    "text_encoder": "text_encoder/config.json",
}
OPTIONAL = {"index": "model_index.json", "tokenizer": "tokenizer/tokenizer_config.json"}

Part = Mapping[str, Any]


@dataclass(frozen=True)
class PipelineFiles:
    """Each part's configuration; None where it is neither in a directory nor in the hub's cache.

    variant: of its weights, where a part has no other.
    notes: on what a run takes otherwise than these files have it, one line each.
    """

    model: str
    scheduler: Part | None
    unet: Part | None
    vae: Part | None
    text_encoder: Part | None
    tokenizer: Part | None = None
    index: Part | None = None
    variant: str | None = None
    notes: tuple[str, ...] = ()


def read_pipeline(model: str, revision: str | None, *, fetch: bool) -> PipelineFiles:
    """Reads the files of `policy.model`.

    Args: fetch: whether to ask the hub for what is not in its cache; else that is None.
    Raises: ConfigError if it is of another family, a directory is no whole pipeline, a file cannot be read, or the hub
        does not give one.
    """
    directory = local_directory("policy.model", model)
    absent = directory is None and fetch and any(_cached(model, revision, name) is None for name in FILES.values())
    if absent:
        _fetch(model, revision, OPTIONAL.values())
    parts: Any = {part: _read(model, revision, directory, name) for part, name in OPTIONAL.items()}
    _check_family(model, parts["index"])
    for folder in FOLDERS:
        if directory is not None and not (directory / folder).is_dir():
            raise ConfigError(f"policy.model={model} has no {folder}/; give a whole pipeline directory")
    if absent:
        _fetch(model, revision, FILES.values())
    parts |= {part: _read(model, revision, directory, name) for part, name in FILES.items()}
    return PipelineFiles(model, **parts)


def _check_family(model: str, index: Part | None) -> None:
    """A directory without model_index.json may be of a known family all the same. Raises: ConfigError."""
    name = FAMILIES[0] if index is None else index.get("_class_name")
    if name not in FAMILIES:
        raise ConfigError(
            f"policy.model={model} is a {name} by its model_index.json; known: {', '.join(FAMILIES)}; give one of these"
        )


def local_directory(setting: str, location: str) -> Path | None:
    """The directory that a location names; None for a hub id (`name` or `owner/name`).

    Raises: ConfigError if it looks like a path and there is no such directory.
    """
    try:
        path = Path(resolve(location)).expanduser()
    except FileNotFoundError as error:
        raise ConfigError(f"{setting}={error}; give a directory or a hub id") from None
    if path.is_dir():
        return path
    if path.exists() or location.startswith("~") or path.is_absolute() or not _is_repository(location):
        raise ConfigError(f"{setting}={location} is not a directory; give an existing one or a hub id")
    return None


def _is_repository(location: str) -> bool:
    """Whether a location can be a hub id: `name` or `owner/name`, of letters, digits and - _ . inside."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(location)
    except HFValidationError:
        return False
    return True


def _read(model: str, revision: str | None, directory: Path | None, name: str) -> Part | None:
    path = directory / name if directory else _cached(model, revision, name)
    if path is None or (name in OPTIONAL.values() and not path.exists()):
        return None
    try:
        return read_json(path)
    except FileFault as fault:
        raise ConfigError(f"policy.model={model}: {name} {fault}") from None


def _fetch(model: str, revision: str | None, names: Iterable[str]) -> None:
    """The files, into the hub's cache. Raises: ConfigError if they cannot be had."""
    for name in names:
        fetch_file("policy.model", model, revision, name)


def fetch_file(setting: str, model: str, revision: str | None, name: str) -> None:
    """One file of a model that is no directory here, into the hub's cache; at once, where the hub does not answer.

    Raises: ConfigError if it cannot be had.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    from huggingface_hub.utils.logging import set_verbosity_error

    set_verbosity_error()  # type: ignore[no-untyped-call]  # its retries are a line each
    if _cached(model, revision, name) is not None:
        return
    try:
        probe_hub()
        hf_hub_download(model, name, revision=revision)
    except Exception as error:  # the client's own, the HTTP library's and the operating system's: no common base
        answered = isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)
        if answered and name in OPTIONAL.values():
            return  # the repository has no such file
        raise ConfigError(
            f"{setting}={model} is no directory here, and cannot be had from the hub ({one_line(error)}); give the "
            "directory of a model, or run where the hub can be reached"
        ) from None


def _cached(model: str, revision: str | None, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, name, revision=revision)
    return Path(found) if isinstance(found, str) else None
