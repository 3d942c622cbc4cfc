"""What a pipeline says of itself: its configuration files, read once, before a weight is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydense.config import ConfigError
from raydense.core.hub import probe_hub
from raydense.core.locations import resolve
from raydense.core.messages import one_line
from raydense.core.weight_files import FileFault, read_json

FOLDERS = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")  # of a pipeline directory
FILES = {
    "scheduler": "scheduler/scheduler_config.json",
    "unet": "unet/config.json",
    "vae": "vae/config.json",
    "text_encoder": "text_encoder/config.json",
}

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
    variant: str | None = None
    notes: tuple[str, ...] = ()


def read_pipeline(model: str, revision: str | None, *, fetch: bool) -> PipelineFiles:
    """Reads the files of `policy.model`.

    Args: fetch: whether to ask the hub for what is not in its cache; else that is None.
    Raises: ConfigError if a directory is no whole pipeline, a file cannot be read, or the hub does not give one.
    """
    if (directory := local_directory("policy.model", model)) is not None:
        for folder in FOLDERS:
            if not (directory / folder).is_dir():
                raise ConfigError(f"policy.model={model} has no {folder}/; give a whole pipeline directory")
    elif fetch:
        _fetch(model, revision)
    scheduler, unet, vae, text_encoder = (_read(model, revision, directory, name) for name in FILES.values())
    return PipelineFiles(model, scheduler, unet, vae, text_encoder)


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
    if path.exists() or location.startswith((".", "~")) or path.is_absolute() or not _could_be_on_the_hub(location):
        raise ConfigError(f"{setting}={location} is not a directory; give an existing one or a hub id")
    return None


def _could_be_on_the_hub(location: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public all the same

    try:
        validate_repo_id(location)
    except HFValidationError:
        return False
    return True


def _read(model: str, revision: str | None, directory: Path | None, name: str) -> Part | None:
    path = directory / name if directory else _cached(model, revision, name)
    if path is None:
        return None
    try:
        return read_json(path)
    except FileFault as fault:
        raise ConfigError(f"policy.model={model}: {name} {fault}") from None


def _fetch(model: str, revision: str | None) -> None:
    """The files, into the hub's cache. Raises: ConfigError if they cannot be had."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils.logging import set_verbosity_error

    set_verbosity_error()  # type: ignore[no-untyped-call]  # its retries are a line each
    for name in FILES.values():
        if _cached(model, revision, name) is not None:
            continue
        try:
            probe_hub()
            hf_hub_download(model, name, revision=revision)
        except Exception as error:  # the client's own, the HTTP library's and the operating system's: no common base
            raise ConfigError(
                f"policy.model={model} cannot be had from the hub ({one_line(error)}); give a pipeline directory, or "
                "run where the hub can be reached"
            ) from None


def _cached(model: str, revision: str | None, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, name, revision=revision)
    return Path(found) if isinstance(found, str) else None
