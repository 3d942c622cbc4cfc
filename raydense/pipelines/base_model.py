"""The base model by its bytes: the same in every process of a run, and when a run continues."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from raydense.config import ConfigError
from raydense.files.durable import known_checksum
from raydense.files.locations import resolve
from raydense.pipelines.pipeline_files import FOLDERS, INDEX, LAYOUTS, config_file

READ = (".json", ".txt", ".safetensors")  # what a network, a tokenizer or a processor is loaded from
COMMIT = "commit"
TELLING = (INDEX, *dict.fromkeys(config_file(layout.denoiser) for layout in LAYOUTS.values()), "config.json")
LEARNED_WITH = tuple(folder for folder in FOLDERS if folder != "vae")  # the learner decodes nothing

Checksums = Mapping[str, str]  # by part: a folder's name, or `COMMIT`


def model_checksums(location: str, revision: str | None = None, folders: Sequence[str] = (".",)) -> Checksums:
    """A directory's folders by SHA-256 over the names and bytes of their files; a hub id by its commit in the cache.

    Empty where there is neither. A large file is read once a node: `known_checksum`.
    """
    try:
        directory = Path(resolve(location)).expanduser()
    except FileNotFoundError:
        return {}
    if directory.is_dir():
        return {folder: _folder_checksum(directory / folder) for folder in folders if (directory / folder).is_dir()}
    commit = _cached_commit(location, revision)
    return {COMMIT: commit} if commit else {}


def _folder_checksum(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in READ and path.is_file():
            digest.update(f"{path.name} {known_checksum(path)}\n".encode())
    return digest.hexdigest()


def _cached_commit(repository: str, revision: str | None) -> str | None:
    """A snapshot is named after its commit, and never changes."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for name in TELLING:  # of a pipeline, and of a network
        try:
            found = try_to_load_from_cache(repository, name, revision=revision)
        except HFValidationError:  # a path, of what is gone
            return None
        if isinstance(found, str):
            parts = Path(found).parts
            return parts[parts.index("snapshots") + 1]
    return None


def differing(before: Checksums, now: Checksums) -> list[str]:
    """The parts that are other ones than before; what was not known then, or is not now, is no difference."""
    if before and now and not before.keys() & now.keys():
        return list(now)  # a directory at one time or place, the hub's at the other
    return [part for part, checksum in now.items() if before.get(part, checksum) != checksum]


class BaseModel:
    """What every process must have loaded; where nothing is known of a part, the first that reports it decides.

    Args:
        location, revision: as the processes are given them; none for processes that load no model.
        known: what the run began with.
    """

    def __init__(self, location: str = "", revision: str | None = None, known: Mapping[str, str] = {}) -> None:
        self._location, self._revision = location, revision
        self._known, self._whose = dict(known), dict.fromkeys(known, "the run began with")
        self._admitting = threading.Lock()  # samplers report in the fleet's thread, the learner in the run's

    @property
    def known(self) -> Checksums:
        return dict(self._known)

    def look(self, folders: Sequence[str] = FOLDERS) -> Callable[[], Checksums]:
        """To be called where the model was loaded: what lies there. It can be sent to another node."""
        return partial(model_checksums, self._location, self._revision, folders) if self._location else dict

    def admit(self, who: str, node: str, found: Checksums) -> None:
        """Raises: ConfigError naming the node if it has other files."""
        with self._admitting:
            if others := differing(self._known, found):
                whose = self._whose.get(others[0], next(iter(self._whose.values())))
                raise ConfigError(
                    f"policy.model={self._location}: on {node}, {who} loaded another {', '.join(others)} than {whose}; "
                    "put the same files there on every node"
                )
            for part, checksum in found.items():
                self._known.setdefault(part, checksum)
                self._whose.setdefault(part, f"{who} on {node}")
