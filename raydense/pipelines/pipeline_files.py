"""What a pipeline says of itself: its configuration files, read once, before a weight is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raydense.config import ConfigError
from raydense.core.messages import one_line
from raydense.files.hub import probe_hub
from raydense.files.locations import resolve
from raydense.files.weight_files import FileFault, read_json
from raydense.pipelines.published import PUBLISHED

INDEX = "model_index.json"
SCHEDULER = "scheduler"
POSITIONS, VOCABULARY = 77, 49408  # CLIP's, where a text encoder's file does not say
T5_VOCABULARY = 32128  # as transformers has it
T5_ENCODER = "T5EncoderModel"
CLIP, T5 = ("CLIPTokenizer", "CLIPTokenizerFast"), ("T5Tokenizer", "T5TokenizerFast")

Part = Mapping[str, Any]


@dataclass(frozen=True)
class Layout:
    """What lies in a pipeline's directory beside its scheduler, a folder each.

    denoiser: the network that is trained. networks: class by folder. tokenizers: classes that a folder's may be of.
    optional: folders that a pipeline may leave out.
    """

    denoiser: str
    networks: Mapping[str, str]
    tokenizers: Mapping[str, tuple[str, ...]]
    optional: tuple[str, ...] = ()

    @property
    def called(self) -> str:
        """The denoiser, as people write it."""
        return "U-Net" if self.denoiser == "unet" else self.denoiser

    @property
    def has_t5(self) -> bool:
        """Whether one belongs to it, which settings of its own are for; a pipeline may leave it out."""
        return T5_ENCODER in self.networks.values()

    @property
    def text_encoders(self) -> tuple[str, ...]:
        return tuple(part for part in self.networks if part.startswith("text_encoder"))


LAYOUTS: Mapping[str, Layout] = {  # by the pipeline's class in model_index.json; `raydense.families` has the rest
    "StableDiffusionPipeline": Layout(
        denoiser="unet",
        networks={"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"},
        tokenizers={"tokenizer": CLIP},
    ),
    "StableDiffusionXLPipeline": Layout(
        denoiser="unet",
        networks={
            "unet": "UNet2DConditionModel",
            "vae": "AutoencoderKL",
            "text_encoder": "CLIPTextModel",
            "text_encoder_2": "CLIPTextModelWithProjection",
        },
        tokenizers={"tokenizer": CLIP, "tokenizer_2": CLIP},
    ),
    "StableDiffusion3Pipeline": Layout(
        denoiser="transformer",
        networks={
            "transformer": "SD3Transformer2DModel",
            "vae": "AutoencoderKL",
            "text_encoder": "CLIPTextModelWithProjection",
            "text_encoder_2": "CLIPTextModelWithProjection",
            "text_encoder_3": T5_ENCODER,
        },
        tokenizers={"tokenizer": CLIP, "tokenizer_2": CLIP, "tokenizer_3": T5},
        optional=("text_encoder_3", "tokenizer_3"),
    ),
    "FluxPipeline": Layout(
        denoiser="transformer",
        networks={
            "transformer": "FluxTransformer2DModel",
            "vae": "AutoencoderKL",
            "text_encoder": "CLIPTextModel",
            "text_encoder_2": T5_ENCODER,
        },
        tokenizers={"tokenizer": CLIP, "tokenizer_2": T5},
    ),
}
DEFAULT = "StableDiffusionPipeline"  # where a directory has no model_index.json
FOLDERS = tuple(
    sorted({SCHEDULER}.union(*((*layout.networks, *layout.tokenizers) for layout in LAYOUTS.values())))
)  # that any of them may have


@dataclass(frozen=True)
class PipelineFiles:
    """A pipeline's configuration files, by folder.

    kind: its class, of `LAYOUTS`.
    parts: of the folders that it has; None where a file is neither in a directory nor in the hub's cache.
    variant: of its weights, where a part has no other.
    notes: on what a run takes otherwise than these files have it, one line each.
    """

    model: str
    kind: str = DEFAULT
    parts: Mapping[str, Part | None] = field(default_factory=dict)
    index: Part | None = None
    variant: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def layout(self) -> Layout:
        return LAYOUTS[self.kind]

    def __getitem__(self, folder: str) -> Part | None:
        return self.parts.get(folder)

    def has(self, folder: str) -> bool:
        """Whether it is a part of this pipeline, known or not."""
        return folder in self.parts

    @property
    def networks(self) -> dict[str, str]:
        """Class by folder, of those that it has."""
        return {folder: name for folder, name in self.layout.networks.items() if self.has(folder)}

    def is_t5(self, folder: str) -> bool:
        """Whether it is the large text encoder."""
        return self.networks.get(folder) == T5_ENCODER

    @property
    def tokenizers(self) -> tuple[str, ...]:
        return tuple(folder for folder in self.layout.tokenizers if self.has(folder))


def config_file(folder: str) -> str:
    """The file in which a folder says what it is."""
    if folder == SCHEDULER:
        return "scheduler/scheduler_config.json"
    return f"{folder}/tokenizer_config.json" if folder.startswith("tokenizer") else f"{folder}/config.json"


def _all_cached(model: str, revision: str | None, names: Iterable[str]) -> bool:
    return all(_cached(model, revision, name) is not None for name in names)


def _is_needed(name: str) -> bool:
    return name != INDEX and not name.endswith("/tokenizer_config.json")


def read_pipeline(model: str, revision: str | None, *, fetch: bool, optional: bool = True) -> PipelineFiles:
    """Reads the files of `policy.model`.

    Args:
        fetch: whether to ask the hub for what is not in its cache; else that is None.
        optional: whether to use what a pipeline may leave out.
    Raises: ConfigError if it is of no known class, a directory is no whole pipeline, a file cannot be read, or the hub
        does not give one.
    """
    directory = local_directory("policy.model", model)
    asks = directory is None and fetch
    if asks and not _all_cached(model, revision, map(config_file, (SCHEDULER, *LAYOUTS[DEFAULT].networks))):
        fetch_file("policy.model", model, revision, INDEX)
    index = _read(model, revision, directory, INDEX)
    kind = PUBLISHED[model][0] if index is None and model in PUBLISHED else _kind(model, index)
    folders = _folders(LAYOUTS[kind], index or {}, optional)
    for folder in folders:
        if directory is not None and not (directory / folder).is_dir():
            raise ConfigError(f"policy.model={model} has no {folder}/; give a whole pipeline directory")
    names = [config_file(folder) for folder in folders]
    if asks and not _all_cached(model, revision, filter(_is_needed, names)):
        for name in names:
            fetch_file("policy.model", model, revision, name)
    parts = {folder: _read(model, revision, directory, config_file(folder)) for folder in folders}
    return PipelineFiles(model, kind, parts, index)


def _kind(model: str, index: Part | None) -> str:
    """A directory without model_index.json may be of a known class all the same. Raises: ConfigError."""
    name = DEFAULT if index is None else index.get("_class_name")
    if not isinstance(name, str) or name not in LAYOUTS:  # a list: a class of the repository's own code
        raise ConfigError(
            f"policy.model={model} is a {name} by its model_index.json; known: {', '.join(LAYOUTS)}; give one of these"
        )
    return name


def class_in(index: Part, folder: str) -> str | None:
    """The class that model_index.json names for a folder; None where it names none, or is no pair of texts."""
    entry = index.get(folder)
    name = entry[1] if isinstance(entry, list) and len(entry) == 2 else None  # library and class
    return name if isinstance(name, str) else None


def _folders(layout: Layout, index: Part, optional: bool) -> list[str]:
    """Those that a pipeline has: what it may leave out is null in its index."""
    unused = {folder for folder in layout.optional if not optional or index.get(folder, "") in (None, [None, None])}
    return [folder for folder in (SCHEDULER, *layout.networks, *layout.tokenizers) if folder not in unused]


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
    if path is None or not (_is_needed(name) or path.exists()):
        return None
    try:
        return read_json(path)
    except FileFault as fault:
        raise ConfigError(f"policy.model={model}: {name} {fault}") from None


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
        if answered and not _is_needed(name):
            return  # the repository has no such file
        raise ConfigError(
            f"{setting}={model} is no directory here, and cannot be had from the hub ({one_line(error)}); give the "
            "directory of a model, or run where the hub can be reached"
        ) from None


def _cached(model: str, revision: str | None, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, name, revision=revision)
    return Path(found) if isinstance(found, str) else None


def token_count(text_encoder: Part, tokenizer: Part | None) -> int:
    """How many tokens of a prompt a CLIP reads: as its tokenizer says, and never more than its positions."""
    positions = int(text_encoder.get("max_position_embeddings", POSITIONS))
    return min(positions, int((tokenizer or {}).get("model_max_length") or positions))


def tokens_of(files: PipelineFiles, encoder: str) -> int:
    """As `token_count`, of a pipeline's encoder and the tokenizer beside it."""
    return token_count(files[encoder] or {}, files[tokenizer_of(encoder)])


def tokenizer_of(encoder: str) -> str:
    """The folder of the tokenizer that belongs to an encoder's."""
    return encoder.replace("text_encoder", "tokenizer")
