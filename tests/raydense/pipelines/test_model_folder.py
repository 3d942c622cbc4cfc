"""Which weights of a folder are loaded, wherever it lies, and what is said where there are none."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from small_families import write_sd3

from raydense.config import ConfigError
from raydense.pipelines.model_folder import ModelFolder, choose_weights

DIFFUSERS = "diffusion_pytorch_model"
CHOICES = [  # stem, files, wanted variant: the file that is taken, and its variant
    (DIFFUSERS, ["{}.safetensors"], None, "{}.safetensors", None),
    (DIFFUSERS, ["{}.safetensors", "{}.fp16.safetensors", "{}.bin"], None, "{}.safetensors", None),
    (DIFFUSERS, ["{}.safetensors", "{}.fp16.safetensors"], "fp16", "{}.fp16.safetensors", "fp16"),
    (DIFFUSERS, ["{}.safetensors"], "fp16", "{}.safetensors", None),  # as diffusers' pipelines
    (DIFFUSERS, ["{}.fp16.safetensors", "{}.bin"], None, "{}.fp16.safetensors", "fp16"),
    ("model", ["{}.fp16.safetensors"], None, "{}.fp16.safetensors", "fp16"),
    ("model", ["{}.non_ema.safetensors", "{}.fp16.safetensors"], "non_ema", "{}.non_ema.safetensors", "non_ema"),
    ("model", ["{}-00001-of-00002.safetensors", "{}.safetensors.index.json"], None, "{}.safetensors.index.json", None),
    (
        DIFFUSERS,
        ["{}.fp16-00001-of-00002.safetensors", "{}.safetensors.index.fp16.json"],
        None,
        "{}.safetensors.index.fp16.json",
        "fp16",
    ),
    (DIFFUSERS, ["{}.safetensors", "{}.safetensors.index.json"], None, "{}.safetensors.index.json", None),
    ("model", ["{}.safetensors", "{}.safetensors.index.json"], None, "{}.safetensors", None),
]
REFUSALS = [  # files: what is said
    ([], "has no model.safetensors; add it, or give another model"),
    (["model.msgpack", "other.safetensors"], "has no model.safetensors"),
    (["model.fp16.safetensors", "model.ema.safetensors"], "has weights of the variants ema, fp16; set policy.variant"),
    (["pytorch_model.bin"], "has pytorch_model.bin, which can run code, and no safetensors; convert it with `python"),
    (["pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin"], "has pytorch_model.bin.index.json, which"),
]


def folder_of(root: Path, files: Sequence[str], stem: str = "model") -> ModelFolder:
    (root / "part").mkdir()
    for name in ("config.json", *files):
        (root / "part" / name.format(stem)).touch()
    return ModelFolder("policy.model", str(root), None, "part")


@pytest.mark.parametrize(("stem", "files", "wanted", "taken", "variant"), CHOICES)
def test_the_weights_that_are_taken(
    tmp_path: Path, stem: str, files: list[str], wanted: str | None, taken: str, variant: str | None
) -> None:
    weights = choose_weights(folder_of(tmp_path, files, stem), stem, wanted)
    assert weights is not None
    assert (weights.name, weights.variant) == (taken.format(stem), variant)
    assert str(weights) == f"policy.model={tmp_path}: part/{taken.format(stem)}"


@pytest.mark.parametrize(("files", "said"), REFUSALS)
def test_a_folder_without_weights_that_can_be_taken(tmp_path: Path, files: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        choose_weights(folder_of(tmp_path, files), "model")
    assert str(caught.value).startswith(f"policy.model={tmp_path}: part {said}")


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ("[]", "index.json holds a list where a mapping belongs"),
        ("{}", "index.json holds no weight_map of tensors' names to files"),
        ('{"weight_map": {"a": 1}}', "index.json holds no weight_map"),
        ('{"weight_map": {"a": "model-1.safetensors"}}', "index.json names model-1.safetensors, which is not there"),
    ],
)
def test_an_index_that_cannot_be_used(tmp_path: Path, index: str, said: str) -> None:
    weights = choose_weights(folder_of(tmp_path, ["model.safetensors.index.json"]), "model")
    assert weights is not None
    (tmp_path / "part" / weights.name).write_text(index)
    with pytest.raises(ConfigError, match=re.escape(said)):
        weights.shapes()


def write_pickles(directory: Path, ending: str) -> None:
    """Takes the place of all weights, as in downloads of years ago."""
    for file in directory.rglob("*.safetensors"):
        stem = "pytorch_model" if file.stem == "model" else file.stem
        torch.save({name: tensor.clone() for name, tensor in load_file(file).items()}, file.with_name(stem + ending))
        file.unlink()


@pytest.mark.parametrize("ending", [".bin", ".fp16.bin"])
@pytest.mark.parametrize(
    ("setting", "part", "stem"),
    [
        ("policy.model", "unet", DIFFUSERS),
        ("policy.model", "text_encoder", "model"),
        ("policy.model", "transformer", DIFFUSERS),  # of another kind of pipeline
        ("scorer s: model", "", "model"),
    ],
)
def test_the_command_for_pickles_converts_them(
    pipeline_dir: Path,
    scorer_dir: Path,
    make_once: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
    part: str,
    stem: str,
    ending: str,
) -> None:
    source = pipeline_dir if setting == "policy.model" else scorer_dir
    if part == "transformer":
        source = make_once("kind-sd3", write_sd3)
    shutil.copytree(source, tmp_path / "old model")
    write_pickles(tmp_path / "old model", ending)
    with pytest.raises(ConfigError) as caught:
        choose_weights(ModelFolder(setting, str(tmp_path / "old model"), None, part), stem)
    command = re.search(r"`(.*)`, and set (.*)=\"(.*)\"$", str(caught.value))
    assert command is not None
    python, flag, code = shlex.split(command[1])
    assert (python, flag, command[2]) == ("python", "-c", setting)
    monkeypatch.chdir(tmp_path)
    exec(code)
    (converted,) = (tmp_path / command[3] / part).glob("*.safetensors")
    before, after = load_file(source / part / converted.name), load_file(converted)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.fixture
def cached(tmp_path: Path, pipeline_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`owner/name` in the hub's cache, where there is no hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--owner--name"
    shutil.copytree(pipeline_dir, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    return repository / "snapshots" / "abc"


def test_a_repository_in_the_hubs_cache(cached: Path) -> None:
    folder = ModelFolder("policy.model", "owner/name", None, "text_encoder")
    assert folder.names() == ["config.json", "model.safetensors"]
    (cached / "text_encoder" / "model.safetensors").rename(cached / "text_encoder" / "model.fp16.safetensors")
    weights: Any = choose_weights(folder, "model")
    assert weights.variant == "fp16"
    assert (16,) in weights.shapes().values()
    (cached / "text_encoder" / "model.fp16.safetensors").unlink()
    assert choose_weights(folder, "model") is None  # whether the hub has some is not known
    assert choose_weights(ModelFolder("policy.model", "owner/other", None, "text_encoder"), "model") is None


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("my model", "is not a directory; give an existing one or a hub id"),
        ("a..b", "is not a directory; give an existing one or a hub id"),
        ("/absent", "is not a directory; give an existing one or a hub id"),
        ("a/b/c", "is not a directory; give an existing one or a hub id"),
        ("pkg://no_package/x", "no installed package 'no_package'"),
    ],
)
def test_a_location_of_nothing_is_not_asked_of_the_hub(location: str, said: str) -> None:
    folder = ModelFolder("scorer s: model", location)
    for use in (folder.names, folder.check_files, lambda: choose_weights(folder, "model", fetch=True)):
        with pytest.raises(ConfigError, match=re.escape(said)):
            use()


def test_the_vocabulary_may_be_one_file_or_two(pipeline_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(pipeline_dir / "tokenizer", tmp_path / "tokenizer")
    folder = ModelFolder("policy.model", str(tmp_path), None, "tokenizer")
    folder.check_files(vocabulary=True)
    (tmp_path / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    folder.check_files(vocabulary=True)
    (tmp_path / "tokenizer" / "merges.txt").unlink()
    folder.check_files()
    with pytest.raises(ConfigError, match=r"tokenizer holds neither tokenizer\.json nor vocab\.json with merges\.txt"):
        folder.check_files(vocabulary=True)
