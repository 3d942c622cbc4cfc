"""A run at a URI (`s3://…`, `gs://…`, any of pyarrow.fs): it is written on this machine and copied at every checkpoint.

Manifests are copied last and removed first, so that a checkpoint with a manifest is whole there too.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from functools import cached_property
from pathlib import Path

from pyarrow import ArrowException
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem, copy_files

from raydense.config import ConfigError
from raydense.core.messages import one_line
from raydense.records.checkpoint_files import MANIFEST


class Mirror:
    """Copies a local directory to a URI, changed files only.

    Raises: ConfigError if the URI's scheme is unknown or the place cannot be reached.
    """

    def __init__(self, uri: str) -> None:
        self.uri = without_secret(uri)  # as it is shown
        self._copied: dict[str, tuple[int, int]] = {}  # relative path → size and time of what was copied
        try:
            self._remote, self._root = FileSystem.from_uri(uri)
            self._listing = self._list()
        except (ArrowException, OSError, ValueError) as error:
            raise self._refusal("reached", one_line(error).replace(uri, self.uri)) from None

    @cached_property
    def local(self) -> Path:
        """The directory on this machine, from its first use on."""
        return Path(tempfile.mkdtemp(prefix="raydense-run-"))

    def remove_local(self) -> None:
        shutil.rmtree(self.local, ignore_errors=True)

    @property
    def is_empty(self) -> bool:
        return not self._listing

    def pull(self) -> None:
        """Brings everything that lies at the URI."""
        for name in self._listing:
            target = self.local / name
            target.parent.mkdir(parents=True, exist_ok=True)
            self._copy_file(self._remote, f"{self._root}/{name}", LocalFileSystem(), str(target))
            self._copied[name] = _state(target)

    def claim(self, name: str) -> None:
        """Copies one file, before any work begins. Raises: ConfigError if nothing can be written there."""
        try:
            self._push_file(name)
        except (ArrowException, OSError) as error:
            raise self._refusal("written", one_line(error)) from None

    def push(self) -> None:
        """Copies what changed since the last time, and removes what is gone here."""
        names = {p.relative_to(self.local).as_posix(): p for p in self.local.rglob("*") if p.is_file()}
        names = {name: path for name, path in names.items() if ".partial" not in name}
        for name in sorted(self._copied.keys() - names.keys(), key=lambda n: not n.endswith(MANIFEST)):
            self._remote.delete_file(f"{self._root}/{name}")
            del self._copied[name]
        for name in sorted(names, key=lambda n: (n.endswith(MANIFEST), n)):
            if _state(names[name]) != self._copied.get(name):
                self._push_file(name)

    def _push_file(self, name: str) -> None:
        state = _state(self.local / name)
        self._copy_file(LocalFileSystem(), str(self.local / name), self._remote, f"{self._root}/{name}")
        self._copied[name] = state

    def _refusal(self, what: str, reason: str) -> ConfigError:
        return ConfigError(f"--out={self.uri} cannot be {what} ({reason}); give another place")

    def _list(self) -> list[str]:
        found = self._remote.get_file_info(FileSelector(self._root, recursive=True, allow_not_found=True))
        return sorted(info.path[len(self._root) :].lstrip("/") for info in found if info.type == FileType.File)

    @staticmethod
    def _copy_file(source: FileSystem, path: str, target: FileSystem, destination: str) -> None:
        target.create_dir(destination.rpartition("/")[0], recursive=True)
        copy_files(path, destination, source_filesystem=source, destination_filesystem=target)


def without_secret(uri: str) -> str:
    """The URI without user and password, or keys, before its host: `s3://key:secret@bucket/x` → `s3://***@bucket/x`."""
    return re.sub(r"(?<=://)[^/@]*@", "***@", uri)


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
