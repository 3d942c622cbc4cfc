"""HPSv2 against the package's own `score()`, one image at a time, on the same random weights."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as vision
from PIL import Image

from raydense.config import ConfigError
from raydense.rewards import hpsv2
from raydense.rewards.hpsv2 import HPSv2Scorer, check_checkpoint, open_clip

PROMPTS = ("a cat", "A dog on the moon, oil on canvas", "a cat", "", "a very long prompt, " * 40)
SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
CPU = torch.device("cpu")


def pictures(count: int, height: int = 96, width: int = 96) -> np.ndarray[Any, Any]:
    """Fine noise, on which the resize filters differ."""
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.fixture
def small_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    for antialias in (False, True):
        monkeypatch.setitem(open_clip(antialias).factory._MODEL_CONFIGS, "ViT-H-14", SMALL)


def save_random_weights(path: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip(False).create_model("ViT-H-14")
        if model.visual.conv1.weight.shape[0] < 100:  # so small a network hardly sees its input otherwise
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, path)
    return path


@pytest.fixture
def checkpoint(small_architecture: None, tmp_path: Path) -> Path:
    return save_random_weights(tmp_path / "weights.pt")


@pytest.fixture
def package_score(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[float]]:
    """The installed package's `img_score.score` itself; its model is built by its own code, untouched by ours."""
    directory = Path(next(iter(find_spec("hpsv2").submodule_search_locations)))  # type: ignore[union-attr]
    package = open_clip(False)

    def execute(name: str, path: Path) -> ModuleType:
        spec = spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    for name in ("hpsv2", "hpsv2.src"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "hpsv2.src.open_clip", package)
    monkeypatch.setitem(sys.modules, "hpsv2.utils", execute("hpsv2.utils", directory / "utils.py"))
    img_score = execute("hpsv2.img_score", directory / "img_score.py")
    img_score.device = "cpu"  # type: ignore[attr-defined]
    transform = execute("_raydense_hpsv2_plain.transform", directory / "src" / "open_clip" / "transform.py")

    def score(images: np.ndarray[Any, Any], prompts: tuple[str, ...], weights: Path, antialias: bool) -> list[float]:
        model = package.create_model("ViT-H-14", output_dict=True)
        preprocess = transform.image_transform(model.visual.image_size, is_train=False, resize_longest_max=True)  # type: ignore[attr-defined]
        img_score.model_dict.update(model=model, preprocess_val=preprocess)  # type: ignore[attr-defined]
        with monkeypatch.context() as patch:
            patch.setattr(vision, "resize", partial(vision.resize, antialias=antialias))
            pairs = zip(images, prompts, strict=True)
            return [img_score.score(Image.fromarray(i), p, cp=str(weights))[0] for i, p in pairs]  # type: ignore[attr-defined]

    return score


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [(96, 96), (40, 72), (32, 32), (16, 24)])
def test_equals_the_packages_own_score(
    checkpoint: Path, package_score: Callable[..., list[float]], antialias: bool, size: tuple[int, int]
) -> None:
    images = pictures(len(PROMPTS), *size)
    scorer = HPSv2Scorer("s", checkpoint=str(checkpoint), batch_size=2, device=CPU, antialias=antialias)
    scores = scorer.score(images, PROMPTS)
    expected = package_score(images, PROMPTS, checkpoint, antialias)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, atol=1e-5, rtol=0)
    assert np.ptp(expected) > 1e-2  # the comparison is of different values


def test_batch_composition_does_not_matter(checkpoint: Path) -> None:
    images = pictures(len(PROMPTS))
    one, all_ = (HPSv2Scorer("s", checkpoint=str(checkpoint), batch_size=n, device=CPU) for n in (1, 5))
    np.testing.assert_allclose(one.score(images, PROMPTS), all_.score(images, PROMPTS), atol=1e-6, rtol=0)


def test_each_prompt_is_embedded_once(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = HPSv2Scorer("s", checkpoint=str(checkpoint), device=CPU)
    seen: list[str] = []
    tokenize = scorer._tokenize
    monkeypatch.setattr(scorer, "_tokenize", lambda texts: seen.extend(texts) or tokenize(texts))
    scorer.score(pictures(4), ["b", "a", "b", "b"])
    assert seen == ["b", "a"]


def test_antialiasing_is_a_setting_and_off_by_default(checkpoint: Path) -> None:
    images = pictures(len(PROMPTS))
    default, off, on = (
        HPSv2Scorer("s", checkpoint=str(checkpoint), device=CPU, **setting).score(images, PROMPTS)
        for setting in ({}, {"antialias": False}, {"antialias": True})
    )
    np.testing.assert_array_equal(default, off)
    assert np.abs(on - off).max() > 1e-3


def test_bfloat16_networks_give_float32_scores_close_by(checkpoint: Path) -> None:
    images = pictures(len(PROMPTS))
    full, half = (
        HPSv2Scorer("s", checkpoint=str(checkpoint), device=CPU, dtype=dtype).score(images, PROMPTS)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert half.dtype == np.float32
    assert 0 < np.abs(full - half).max() < 0.05


def test_loading_draws_nothing_from_the_global_generator(checkpoint: Path) -> None:
    before = torch.random.get_rng_state()
    HPSv2Scorer("s", checkpoint=str(checkpoint), device=CPU)
    assert torch.equal(before, torch.random.get_rng_state())


class TestCheckpoint:
    def test_the_version_chooses_the_file_and_the_label(
        self, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = []

        def download(repository: str, filename: str, *, repo_type: str) -> str:
            asked.append((repository, filename, repo_type))
            return str(checkpoint)

        monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
        monkeypatch.setattr("raydense.files.hub.probe_hub", lambda: None)
        labels = [HPSv2Scorer("s", version=version, device=CPU).label for version in ("v2.0", "v2.1")]
        assert labels == ["HPSv2.0", "HPSv2.1"]
        assert asked == [
            ("xswu/HPSv2", "HPS_v2_compressed.pt", "model"),
            ("xswu/HPSv2", "HPS_v2.1_compressed.pt", "model"),
        ]

    def test_a_checkpoint_of_the_other_version_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"HPS_v2\.1_compressed\.pt is HPSv2 v2\.1, but version=v2\.0; make them"):
            HPSv2Scorer("s", version="v2.0", checkpoint="/x/HPS_v2.1_compressed.pt", device=CPU)
        with pytest.raises(ValueError, match=r"version='v2' of HPSv2 is unknown; allowed: v2\.0, v2\.1"):
            HPSv2Scorer("s", version="v2", device=CPU)

    def test_without_a_hub_the_error_says_what_to_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def download(*_: Any, **__: Any) -> str:
            raise ConnectionError("no route")

        monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
        monkeypatch.setattr("raydense.files.hub.probe_hub", lambda: None)
        expected = r"HPS_v2_compressed\.pt cannot be had from xswu/HPSv2 \(no route\); download it .* give its path"
        with pytest.raises(FileNotFoundError, match=expected):
            HPSv2Scorer("s", device=CPU)

    def test_a_file_that_is_no_checkpoint_is_refused(self, small_architecture: None, tmp_path: Path) -> None:
        (tmp_path / "text.pt").write_text("no")
        torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "other.pt")
        torch.save({"state_dict": {"a": tmp_path}}, tmp_path / "code.pt")
        for file, message in (
            ("text.pt", r"text\.pt: cannot be read as a file of tensors alone"),
            ("other.pt", r"other\.pt: holds no tensors by name under 'state_dict', but keys model"),
            ("code.pt", r"code\.pt: cannot be read as a file of tensors alone"),
        ):
            with pytest.raises(ValueError, match=message) as caught:
                HPSv2Scorer("s", checkpoint=str(tmp_path / file), device=CPU)
            assert "\n" not in str(caught.value)
        with pytest.raises(ConfigError, match=r"none\.pt: there is no such file"):
            HPSv2Scorer("s", checkpoint=str(tmp_path / "none.pt"), device=CPU)

    def test_every_tensor_must_fit(self, checkpoint: Path) -> None:
        check_checkpoint("s", "v2.0", str(checkpoint))
        content = torch.load(checkpoint)
        state = content["state_dict"]
        del state["logit_scale"]
        state["extra"] = torch.zeros(1)
        state["visual.proj"] = torch.zeros(3, 2)
        torch.save(content, checkpoint)
        expected = (
            r"^scorer s: checkpoint=.*weights\.pt: does not fit the model; 1 missing: logit_scale; 1 surplus: extra; "
            r"1 misshapen: visual\.proj \[3, 2\], not \[32, 16\]"
        )
        with pytest.raises(ConfigError, match=expected):
            HPSv2Scorer("s", checkpoint=str(checkpoint), device=CPU)
        with pytest.raises(ConfigError, match=expected):
            check_checkpoint("s", "v2.0", str(checkpoint))

    def test_every_value_must_be_a_number(self, checkpoint: Path) -> None:
        content = torch.load(checkpoint)
        content["state_dict"]["visual.proj"][0, 0] = float("inf")
        torch.save(content, checkpoint)
        with pytest.raises(ConfigError, match=r"weights\.pt: has NaN or infinity in visual\.proj; download it again"):
            HPSv2Scorer("s", checkpoint=str(checkpoint), device=CPU)


# Whatever HPSv2's loading does to a process shows here: it runs alone, with no way out to a network.
PROBE = textwrap.dedent(
    """
    import os, socket, sys
    sys.dont_write_bytecode = True  # Python's own cache of compiled modules is the one thing that importing may write
    import torch, torchvision, transformers  # what these do is their own affair
    def no_network(*args, **kwargs): raise AssertionError("a network call")
    socket.socket.connect = socket.create_connection = socket.getaddrinfo = no_network
    before, turtle = dict(os.environ), "turtle" in sys.modules
    from raydense.rewards.hpsv2 import open_clip
    tokens = open_clip(False).get_tokenizer("ViT-H-14")(["A cat and a dog."])[0]
    print(tokens[:8].tolist(), list(tokens.shape))
    print(dict(os.environ) == before, "hpsv2" in sys.modules, "open_clip" in sys.modules, "turtle" in sys.modules)
    print(open_clip(False).__file__)
    """
)
TOKENS = "[49406, 320, 2368, 537, 320, 1929, 269, 49407] [77]"


def probe(python: Path, *path: Path) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*path, *sys.path]))}
    run = subprocess.run([python, "-c", PROBE], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def files(directory: Path) -> dict[Path, float]:
    return {path: path.stat().st_mtime for path in directory.rglob("*")}


def test_loading_leaves_network_environment_and_installation_alone(warm_python: Path) -> None:
    packages = [Path(find_spec(name).submodule_search_locations[0]) for name in ("hpsv2", "open_clip")]  # type: ignore[union-attr,index]
    before = [files(package) for package in packages]
    tokens, process, origin = probe(warm_python)
    assert tokens == TOKENS
    assert process == "True False False False"
    assert Path(origin) == packages[0] / "src" / "open_clip" / "__init__.py"
    assert [files(package) for package in packages] == before


def test_a_release_with_its_own_vocabulary_needs_no_other_package(warm_python: Path, tmp_path: Path) -> None:
    """As 1.1.2: the vocabulary is there, and importing `hpsv2` itself would reach for the network."""
    installed, vocabulary = (find_spec(name).submodule_search_locations[0] for name in ("hpsv2", "open_clip"))  # type: ignore[union-attr,index]
    shutil.copytree(Path(installed) / "src", tmp_path / "hpsv2" / "src")
    (tmp_path / "hpsv2" / "__init__.py").write_text("raise AssertionError('hpsv2 was run')\n")
    shutil.copy(Path(vocabulary) / hpsv2.VOCABULARY, tmp_path / "hpsv2" / "src" / "open_clip")
    (tmp_path / "open_clip").mkdir()
    (tmp_path / "open_clip" / "__init__.py").write_text("raise AssertionError('open_clip was run')\n")
    tokens, process, origin = probe(warm_python, tmp_path)
    assert tokens == TOKENS
    assert process == "True False False False"
    assert origin.startswith(str(tmp_path))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hpsv2, "VOCABULARY", "vocabulary.gz")  # which no release has
    present = hpsv2.find_spec
    for gone, advice in (("hpsv2", "loaded: install hpsv2"), ("open_clip", "lacks vocabulary.gz; install open-clip-")):
        monkeypatch.setattr(hpsv2, "find_spec", lambda name, gone=gone: None if name == gone else present(name))
        with pytest.raises(ModuleNotFoundError, match=advice):
            hpsv2.open_clip.__wrapped__(False)


@pytest.mark.slow
def test_the_full_model_equals_the_packages_own_score(
    tmp_path: Path, package_score: Callable[..., list[float]]
) -> None:
    """plain: `test_equals_the_packages_own_score`. Here ViT-H-14, at random; takes 10 GB of memory, 4 GB of disk."""
    weights = save_random_weights(tmp_path / "weights.pt")
    images, prompts = pictures(2, 512, 512), PROMPTS[:2]
    scores = HPSv2Scorer("s", checkpoint=str(weights), device=CPU).score(images, prompts)
    expected = package_score(images, prompts, weights, antialias=False)
    np.testing.assert_allclose(scores, expected, atol=1e-5, rtol=0)
    assert expected[0] != pytest.approx(expected[1], abs=1e-4)
