"""What a run would load is looked at before it starts: every file that is here, and of weights no more than headers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from raydense.config import Config, ConfigError
from raydense.files.weight_files import LFS_POINTER
from raydense.planning.preflight import check_inputs, check_pipeline
from raydense.planning.scorer_files import check_scorer
from raydense.rewards.aesthetic import AestheticHead
from raydense.sections.rewards import (
    AestheticScorerConfig,
    ClipScorerConfig,
    HPSv2ScorerConfig,
    ImageRewardScorerConfig,
)

WEIGHTS = {
    "unet": "unet/diffusion_pytorch_model",
    "vae": "vae/diffusion_pytorch_model",
    "text_encoder": "text_encoder/model",
}
CONFIGURATIONS = ("unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json")


@pytest.fixture
def model(pipeline_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pipeline_dir, tmp_path / "model"))


@pytest.fixture
def config(small_config: Callable[..., Config], model: Path) -> Callable[..., Config]:
    return lambda **policy: small_config(policy={"model": str(model), **policy})


def rename(model: Path, part: str, ending: str) -> None:
    (model / f"{WEIGHTS[part]}.safetensors").rename(model / f"{WEIGHTS[part]}{ending}")


@pytest.mark.parametrize(
    "file",
    [
        *(f"{stem}.safetensors" for stem in WEIGHTS.values()),
        *CONFIGURATIONS,
        *(f"tokenizer/{name}" for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")),
    ],
)
def test_every_file_of_a_pipeline_is_looked_at(config: Callable[..., Config], model: Path, file: str) -> None:
    (model / file).write_bytes(LFS_POINTER + b".com/spec/v1\nsize 99\n")
    with pytest.raises(ConfigError) as caught:
        check_pipeline(config(), fetch=False)
    assert str(caught.value).startswith(
        f"policy.model={model}: {file} is a pointer of large-file storage to a file of 99 bytes; run `git lfs pull`"
    )


# -- variants ----------------------------------------------------------------------------------------------------


def test_a_variant_that_nobody_asked_for_is_said(config: Callable[..., Config], model: Path) -> None:
    assert check_pipeline(config()).notes == ()
    rename(model, "unet", ".fp16.safetensors")
    said = "policy.model has only fp16 weights for {}, so these are loaded"
    assert check_pipeline(config()).notes == (said.format("unet"),)
    for part in ("vae", "text_encoder"):
        rename(model, part, ".fp16.safetensors")
    assert said.format("unet, vae, text_encoder") in check_inputs(config()).notes
    assert check_pipeline(config(variant="fp16")).notes == ()


def test_a_variant_that_is_not_there_is_refused(config: Callable[..., Config], model: Path) -> None:
    with pytest.raises(
        ConfigError, match=rf"^policy\.variant=fp16: policy\.model={model} has no such weights; leave it"
    ):
        check_pipeline(config(variant="fp16"))
    rename(model, "unet", ".fp16.safetensors")  # the others' plain weights are taken, as diffusers takes them
    assert check_pipeline(config(variant="fp16")).notes == ()


def test_pickles_are_refused_with_the_command_that_converts_them(config: Callable[..., Config], model: Path) -> None:
    rename(model, "vae", ".bin")
    with pytest.raises(
        ConfigError, match=r"vae has diffusion_pytorch_model\.bin, which can run code.*`python -c 'from"
    ):
        check_pipeline(config())


# -- judges ------------------------------------------------------------------------------------------------------


def scorer(kind: str, directory: Path) -> Any:
    match kind:
        case "clip":
            return ClipScorerConfig(kind="clip", name="s", model=str(directory))
        case "aesthetic":
            return AestheticScorerConfig(
                kind="aesthetic", name="s", clip_model=str(directory), head=str(directory / "head.pth")
            )
        case "hpsv2":
            return HPSv2ScorerConfig(kind="hpsv2", name="s", checkpoint=str(directory / "model.pt"))
    files = {"checkpoint": str(directory / "model.pt"), "tokenizer": str(directory)}
    return ImageRewardScorerConfig(kind="imagereward", name="s", **files)


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        *(("clip", name) for name in ("model.safetensors", "config.json", "processor_config.json", "tokenizer.json")),
        ("aesthetic", "model.safetensors"),
        ("aesthetic", "head.pth"),
        ("hpsv2", "model.pt"),
        ("imagereward", "model.pt"),
        ("imagereward", "vocab.txt"),
    ],
)
def test_every_file_of_a_judge_is_looked_at(scorer_dir: Path, tmp_path: Path, kind: str, file: str) -> None:
    directory = Path(shutil.copytree(scorer_dir, tmp_path / "scorer"))
    torch.save(AestheticHead(8).state_dict(), directory / "head.pth")
    (directory / "vocab.txt").write_text("[PAD]\n")
    if kind in ("clip", "aesthetic"):
        check_scorer(scorer(kind, directory))
    (directory / file).write_bytes(b"<html>Sign in</html>")
    with pytest.raises(ConfigError) as caught:
        check_scorer(scorer(kind, directory))
    assert str(caught.value).startswith("scorer s: ")
    assert f"{file}: is a web page" in str(caught.value) or f"{file} is a web page of 20 bytes" in str(caught.value)
