"""HPSv2: the human preference score of the `hpsv2` package, loaded once and computed in batches.

How the package is loaded, and why so. Releases 1.1.2 and 1.2.0 hold the same model, transform and tokenizer, and
neither can simply be imported: `import hpsv2` of 1.1.2 calls the hub and sets NO_PROXY, and 1.2.0 was published
without the vocabulary that its tokenizer opens when it is imported. Both also set TOKENIZERS_PARALLELISM, and import
`turtle`, which fails where Python has no Tk, for a name that they never use. All that computes lies in the subpackage
`hpsv2/src/open_clip`, which uses relative imports only. So that subpackage is executed where it is installed, under a
private name: `hpsv2/__init__.py` is found but never run, nothing is copied or changed, and a user's own
`import hpsv2` is not disturbed. Its tokenizer looks for the vocabulary beside its own `__file__`; while it is executed,
that points into the package that has one: `hpsv2` itself (1.1.2), or `open_clip_torch`, which ships the same file.

Antialiasing. The package resizes *tensors* with torchvision's bicubic filter and leaves `antialias` to torchvision's
default, which was off up to 0.16 and is on since 0.17: one checkpoint, two scores. HPSv2.0 and the paper's figures
were made before (with 0.14), so off is the default here.
"""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
import torchvision.transforms.functional as transforms
from numpy.typing import NDArray
from PIL import Image
from torch.overrides import TorchFunctionMode

from raydense.config import ConfigError
from raydense.core.types import FloatArray
from raydense.files.hub import hub_file
from raydense.rewards.weights import check_fit, load_strictly, read_state_dict

REPOSITORY = "xswu/HPSv2"
CHECKPOINTS = {"v2.0": "HPS_v2_compressed.pt", "v2.1": "HPS_v2.1_compressed.pt"}
ARCHITECTURE = "ViT-H-14"
VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"


class HPSv2Scorer:
    """Cosine similarity of image and prompt under HPSv2: what `hpsv2.score` gives, without its 16-bit rounding.

    Args:
        name: in metrics; it should name the version, since the versions' scales differ.
        version: `v2.0` (the paper's) or `v2.1`.
        checkpoint: a local file; None: the version's own, from the hub.
        batch_size: images a forward pass.
        dtype: of the networks (autocast below float32); normalisation and similarity are float32 always.
        antialias: of the bicubic resize, see above.

    Raises:
        ConfigError: no such checkpoint, one of the other version, or one that does not fit; names it.
        FileNotFoundError: no hub to have it from.
        ModuleNotFoundError: hpsv2, or the vocabulary that it lacks, is not installed.
    """

    def __init__(
        self,
        name: str,
        *,
        version: str = "v2.0",
        checkpoint: str | None = None,
        batch_size: int = 16,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        antialias: bool = False,
    ) -> None:
        path = find_checkpoint(version, checkpoint)
        self.name, self.label = name, f"HPS{version}"
        self._batch_size, self._device, self._dtype = batch_size, device, dtype
        package = open_clip(antialias)
        with torch.random.fork_rng(devices=[]), _SkipInitialisation():
            self._model, _, self._transform = _create_model(package, "cpu")
        source = f"scorer {name}: checkpoint={path}"
        load_strictly(self._model, read_state_dict(path, source, key="state_dict"), source)
        self._tokenize: Any = package.get_tokenizer(ARCHITECTURE)
        self._model.requires_grad_(False).eval().to(device)

    @torch.no_grad()
    def score(self, images: NDArray[np.uint8], prompts: Sequence[str]) -> FloatArray:
        """images uint8 [N, h, w, 3] and N prompts → cosine similarity, float32 [N]; good images are near 0.3."""
        row = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}  # a group repeats its prompt
        image = self._embed(self._embed_images, list(images))
        text = self._embed(self._embed_texts, list(row))
        similarity: FloatArray = (image * text[[row[prompt] for prompt in prompts]]).sum(-1).numpy()
        return similarity

    def _embed(self, network: Callable[[list[Any]], torch.Tensor], items: list[Any]) -> torch.Tensor:
        """n items → unit vectors, float32 [n, D] on the CPU."""
        parts = []
        for start in range(0, len(items), self._batch_size):
            with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
                features = network(items[start : start + self._batch_size])
            parts.append(torch.nn.functional.normalize(features.float(), dim=-1).cpu())
        return torch.cat(parts)

    def _embed_images(self, images: list[NDArray[np.uint8]]) -> torch.Tensor:
        pixels = torch.stack([self._transform(Image.fromarray(image)) for image in images])
        features: torch.Tensor = self._model.encode_image(pixels.to(self._device))
        return features

    def _embed_texts(self, prompts: list[str]) -> torch.Tensor:
        features: torch.Tensor = self._model.encode_text(self._tokenize(prompts).to(self._device))
        return features


def check_checkpoint(name: str, version: str, checkpoint: str) -> None:
    """Holds a scorer's checkpoint against the network, without reading its values. Raises: ConfigError."""
    path = find_checkpoint(version, checkpoint)
    source = f"scorer {name}: checkpoint={path}"
    state = read_state_dict(path, source, key="state_dict", device="meta")
    package = open_clip(False)
    with torch.device("meta"):
        model, *_ = _create_model(package, "meta")
    check_fit(model, state, source)


def _create_model(package: ModuleType, device: str) -> Any:
    """The network, and its transforms for training and for use."""
    return package.create_model_and_transforms(
        ARCHITECTURE, None, light_augmentation=True, output_dict=True, device=device
    )


def find_checkpoint(version: str, checkpoint: str | None) -> Path:
    """The checkpoint's local path; from the hub if none is given. Raises: as HPSv2Scorer."""
    if version not in CHECKPOINTS:
        raise ValueError(f"version={version!r} of HPSv2 is unknown; allowed: {', '.join(CHECKPOINTS)}")
    if checkpoint is None:
        return hub_file(
            REPOSITORY, CHECKPOINTS[version], instead="download it where the hub can be reached and give its path"
        )
    path = Path(checkpoint).expanduser()
    for other, filename in CHECKPOINTS.items():
        if path.name == filename and other != version:
            raise ConfigError(f"checkpoint={path} is HPSv2 {other}, but version={version}; make them agree")
    return path


@functools.cache
def open_clip(antialias: bool, /) -> ModuleType:
    """The package's `open_clip`, privately loaded (see above), its resize with `antialias` stated.

    Raises: ModuleNotFoundError if hpsv2, or the vocabulary that it lacks, is not installed.
    """
    directory = _package_directory("hpsv2", "install hpsv2") / "src" / "open_clip"
    vocabulary = directory
    if not (directory / VOCABULARY).is_file():
        reason = f"this release of hpsv2 lacks {VOCABULARY}; install open-clip-torch, which ships it"
        vocabulary = _package_directory("open_clip", reason)
    name = f"_raydense_hpsv2_{'antialiased' if antialias else 'plain'}"
    spec = spec_from_file_location(name, directory / "__init__.py", submodule_search_locations=[str(directory)])
    assert spec is not None
    assert spec.loader is not None
    package = sys.modules[name] = module_from_spec(spec)
    try:
        with _environment_kept(), _without_turtle(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the package uses names that its own dependencies deprecate
            _execute_tokenizer(name, directory, vocabulary)
            spec.loader.exec_module(package)
    except BaseException:
        for loaded in [module for module in sys.modules if module.partition(".")[0] == name]:
            del sys.modules[loaded]
        raise
    # The names under which the transform module knows torchvision's functions.
    package.transform.F = SimpleNamespace(
        resize=functools.partial(transforms.resize, antialias=antialias), pad=transforms.pad
    )
    return package


def _package_directory(name: str, otherwise: str) -> Path:
    """Where a top-level package lies; finding it does not run it."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"HPSv2 cannot be loaded: {otherwise}")
    return Path(spec.submodule_search_locations[0])


def _execute_tokenizer(package: str, directory: Path, vocabulary: Path) -> None:
    """Registers the package's tokenizer module, which reads the vocabulary of another directory."""
    spec = spec_from_file_location(f"{package}.tokenizer", directory / "tokenizer.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = module_from_spec(spec)
    own_file = module.__file__
    module.__file__ = str(vocabulary / "tokenizer.py")
    spec.loader.exec_module(module)
    module.__file__ = own_file


@contextmanager
def _environment_kept() -> Iterator[None]:
    before = dict(os.environ)
    try:
        yield
    finally:
        for key in [key for key in os.environ if key not in before]:
            del os.environ[key]
        os.environ.update({key: value for key, value in before.items() if os.environ.get(key) != value})


@contextmanager
def _without_turtle() -> Iterator[None]:
    """A stand-in for `turtle`, of which the package imports one unused name, and which needs Tk."""
    own = sys.modules.get("turtle")
    stand_in = ModuleType("turtle")
    stand_in.forward = None  # type: ignore[attr-defined]
    sys.modules["turtle"] = stand_in
    try:
        yield
    finally:
        del sys.modules["turtle"]
        if own is not None:
            sys.modules["turtle"] = own


class _SkipInitialisation(TorchFunctionMode):
    """Leaves out the random values that a strictly loaded checkpoint replaces: 20 s for a ViT-H-14."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        in_init = getattr(func, "__module__", None) == "torch.nn.init"
        if in_init or func in (torch.Tensor.normal_, torch.Tensor.uniform_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
