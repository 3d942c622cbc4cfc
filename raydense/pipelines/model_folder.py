"""Where a network, tokenizer or scheduler has its files: a directory, or a repository of the hub."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydense.config import ConfigError
from raydense.core.messages import one_line
from raydense.files.hub import probe_hub
from raydense.files.weight_files import FileFault, check_text, read_json, read_shapes
from raydense.pipelines.pipeline_files import local_directory

JSON_FILES = (
    "config.json",
    "scheduler_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "preprocessor_config.json",
    "processor_config.json",
)
TEXT_FILES = ("merges.txt", "vocab.txt")
PICKLE = re.compile(r"(diffusion_)?pytorch_model(\.(?P<variant>[^.]+))?\.bin(\.index\.json)?")


@dataclass(frozen=True)
class ModelFolder:
    """Args: setting: that named the location, as errors begin. part: the sub-folder; "": the location itself."""

    setting: str
    location: str  # hub id, directory or pkg://…
    revision: str | None = None
    part: str = ""

    def __str__(self) -> str:
        return f"{self.setting}={self.location}{': ' + self.part if self.part else ''}"

    @property
    def path(self) -> str:
        """The location as the libraries take it. Raises: ConfigError, as whatever uses it, for a path to nothing."""
        return str(local_directory(self.setting, self.location) or self.location)

    @property
    def is_local(self) -> bool:
        return local_directory(self.setting, self.location) is not None

    @property
    def where(self) -> dict[str, Any]:
        """What `from_pretrained` is told beside the path."""
        return {"subfolder": self.part, "revision": self.revision}

    def find(self, name: str) -> Path | None:
        """A file's path, in the directory or in the hub's cache; None if it is not there."""
        if self.is_local:
            return path if (path := Path(self.path, self.part, name)).is_file() else None
        from huggingface_hub import try_to_load_from_cache

        name = f"{self.part}/{name}" if self.part else name
        found = try_to_load_from_cache(self.path, name, revision=self.revision)
        return Path(found) if isinstance(found, str) else None

    def names(self) -> list[str]:
        """Names of the files that are there; none of a repository of which nothing is in the hub's cache."""
        found = [path for name in JSON_FILES if (path := self.find(name)) is not None]
        directory = Path(self.path, self.part) if self.is_local else found[0].parent if found else None
        return sorted(path.name for path in directory.iterdir()) if directory and directory.is_dir() else []

    def names_on_the_hub(self) -> list[str]:
        """Names of the files in the repository; none where the hub cannot be asked."""
        from huggingface_hub import list_repo_files

        try:
            probe_hub()
            files = list_repo_files(self.path, revision=self.revision)
        except Exception:  # as of `hub_file`; whoever loads from there says what is wrong
            return []
        folder = f"{self.part}/" if self.part else ""
        return [name.removeprefix(folder) for name in files if name.startswith(folder)]

    def named(self, name: str) -> str:
        """A file as errors show it."""
        return f"{self.setting}={self.location}: {self.part + '/' if self.part else ''}{name}"

    @contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """Raises: ConfigError naming the file where the block finds a fault in it."""
        try:
            yield
        except FileFault as fault:
            raise ConfigError(f"{self.named(name)} {fault}") from None

    def cannot_be_loaded(self, error: Exception) -> ConfigError:
        kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
        return ConfigError(
            f"{self} cannot be loaded ({kind}{one_line(error)}); give a directory with the whole model, or a hub id on "
            "a machine that reaches the hub"
        )

    def check_files(self, *, vocabulary: bool = False) -> None:
        """Looks at the small files that are there.

        Args: vocabulary: whether there must be one; without it, a tokenizer is made for which every word is unknown.
        Raises: ConfigError naming a file that cannot be read.
        """
        for name in JSON_FILES:
            if (path := self.find(name)) is not None:
                with self.reading(name):
                    read_json(path)
        for name in TEXT_FILES:
            if (path := self.find(name)) is not None:
                with self.reading(name):
                    check_text(path)
        whole = all(map(self.find, ("vocab.json", "merges.txt")))
        if vocabulary and not whole and self.find("tokenizer.json") is None:
            raise ConfigError(f"{self} holds neither tokenizer.json nor vocab.json with merges.txt; add them")


@dataclass(frozen=True)
class Weights:
    """The file that a network is loaded from: safetensors, or the index of several; and the variant in its name."""

    folder: ModelFolder
    name: str
    variant: str | None

    @property
    def is_index(self) -> bool:
        return self.name.endswith(".json")

    def __str__(self) -> str:
        return self.folder.named(self.name)

    def shapes(self) -> dict[str, tuple[int, ...]] | None:
        """Of its tensors, by name, read from the headers; None where a file is not on this machine.

        Raises: ConfigError naming a file that is damaged, or that an index misses.
        """
        if (path := self.folder.find(self.name)) is None:
            return None
        shapes: dict[str, tuple[int, ...]] = {}
        for name in self._shards(path) if self.is_index else [self.name]:
            if (shard := self.folder.find(name)) is None:
                if self.folder.is_local:
                    raise ConfigError(f"{self} names {name}, which is not there; add it")
                return None
            with self.folder.reading(name):
                shapes |= read_shapes(shard)
        return shapes

    def _shards(self, path: Path) -> list[str]:
        with self.folder.reading(self.name):
            shards = read_json(path).get("weight_map")
            if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
                raise FileFault("holds no weight_map of tensors' names to files; download it again")
        return sorted(set(shards.values()))


def choose_weights(folder: ModelFolder, stem: str, wanted: str | None = None, *, fetch: bool = False) -> Weights | None:
    """The weights of a folder: of the wanted variant, else plain ones, else of the only variant there is.

    Args:
        stem: what the library's files begin with.
        wanted: a variant; as with diffusers' pipelines, a folder without it gives its plain weights.
        fetch: whether to ask the hub for a repository's files.
    Returns: None if nothing is known of the folder's files.
    Raises: ConfigError if there is none, if it could be several, or if all are pickles.
    """
    names = folder.names()
    by_variant = _by_variant(names, stem)
    if fetch and not by_variant and not folder.is_local:
        names = folder.names_on_the_hub()
        by_variant = _by_variant(names, stem)
    if not by_variant and not folder.is_local and not fetch:
        return None
    for variant in (wanted, None, *(by_variant if len(by_variant) == 1 else ())):
        if variant in by_variant:
            return Weights(folder, by_variant[variant], variant)
    if by_variant:
        raise ConfigError(f"{folder} has weights of the variants {', '.join(map(str, by_variant))}; {_one_of(folder)}")
    if not names:
        return None
    if pickles := [match for name in names if (match := PICKLE.fullmatch(name))]:
        raise ConfigError(
            f"{folder} has {pickles[0][0]}, which can run code, and no safetensors; "
            f"{_conversion(folder, pickles[0]['variant'])}"
        )
    raise ConfigError(f"{folder} has no {stem}.safetensors; add it, or give another model")


def _by_variant(names: list[str], stem: str) -> dict[str | None, str]:
    """Variant (None: plain weights) → file; where a folder has both, the index of shards for diffusers' classes."""
    pattern = re.compile(
        rf"{re.escape(stem)}(\.(?P<file>[^.]+))?\.safetensors(?P<index>\.index(\.(?P<shards>[^.]+))?\.json)?"
    )
    found: dict[str | None, str] = {}
    for name in names:
        match = pattern.fullmatch(name)
        if match is None or re.search(r"-\d+-of-\d+$", match["file"] or ""):
            continue
        variant = match["shards"] or match["file"]
        if variant not in found or bool(match["index"]) == (stem != "model"):
            found[variant] = name
    return found


def _one_of(folder: ModelFolder) -> str:
    return "set policy.variant to one of them" if folder.setting == "policy.model" else "keep one of them"


def _conversion(folder: ModelFolder, variant: str | None) -> str:
    """The command that converts a model of pickles, and what to set then."""
    old, new = (json.dumps(path) for path in (folder.path, f"{Path(folder.path).name}-safetensors"))
    of_variant = f", variant={json.dumps(variant)}" if variant else ""
    if folder.setting == "policy.model":
        code = (
            "from diffusers import DiffusionPipeline as P; "
            f"P.from_pretrained({old}, safety_checker=None{of_variant}).save_pretrained({new})"
        )
    else:
        code = (
            "from transformers import CLIPModel as M, CLIPProcessor as P; "
            f"M.from_pretrained({old}{of_variant}).save_pretrained({new}); "
            f"P.from_pretrained({old}).save_pretrained({new})"
        )
    return f"convert it with `python -c {shlex.quote(code)}`, and set {folder.setting}={new}"
