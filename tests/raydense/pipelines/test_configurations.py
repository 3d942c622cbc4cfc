"""A configuration from which nothing can be built is refused with its key; what the libraries take passes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel

from raydense.config import ConfigError
from raydense.pipelines.configurations import check_configuration

PARTS: dict[str, Any] = {
    "scheduler/scheduler_config.json": DDIMScheduler,
    "unet/config.json": UNet2DConditionModel,
    "vae/config.json": AutoencoderKL,
    "text_encoder/config.json": CLIPTextModel,
}
REFUSED = [  # file, key, value: what is said of it
    ("scheduler/scheduler_config.json", "beta_start", "0.00085", "should be a number"),
    (
        "scheduler/scheduler_config.json",
        "beta_schedule",
        "cosine_squared",
        "cannot be used (cosine_squared is not impl",
    ),
    ("scheduler/scheduler_config.json", "beta_schedule", ["linear"], "should be text"),
    ("scheduler/scheduler_config.json", "trained_betas", 0.1, "should be a list"),
    ("scheduler/scheduler_config.json", "set_alpha_to_one", "false", "should be true or false"),  # which would be true
    ("scheduler/scheduler_config.json", "num_train_timesteps", None, "cannot be used ("),
    ("unet/config.json", "cross_attention_dim", "768", "should be a list of numbers or a number"),
    ("unet/config.json", "block_out_channels", "8", "should be a list"),
    ("unet/config.json", "block_out_channels", [8, "16"], "should be a list of numbers"),
    (
        "unet/config.json",
        "down_block_types",
        ["NoSuchBlock", "DownBlock2D"],
        "cannot be used (NoSuchBlock does not exist",
    ),
    ("unet/config.json", "sample_size", "8", "should be a list of numbers or a number"),
    ("unet/config.json", "act_fn", "swoosh", "cannot be used ("),
    ("unet/config.json", "block_out_channels", None, "cannot be used ("),
    ("vae/config.json", "scaling_factor", "0.18215", "should be a number"),  # which would fail at the first picture
    ("vae/config.json", "latent_channels", {"a": 4}, "should be a number"),
    ("text_encoder/config.json", "hidden_size", "16", "cannot be used ("),
    ("text_encoder/config.json", "num_attention_heads", 3, "cannot be used ("),
    ("text_encoder/config.json", "hidden_act", "swoosh", "cannot be used ("),
]
TAKEN = [
    ("scheduler/scheduler_config.json", "trained_betas", [0.1] * 1000),
    ("unet/config.json", "sample_size", [8, 12]),
    ("unet/config.json", "attention_head_dim", [4, 4]),
    ("unet/config.json", "upcast_attention", None),  # as in pipelines of SDXL
    ("unet/config.json", "mid_block_scale_factor", 1),
    ("unet/config.json", "an_unknown_key", {"a": 1}),
    ("vae/config.json", "sample_size", [16, 24]),
    ("vae/config.json", "latents_mean", None),
    ("text_encoder/config.json", "dtype", "float16"),
]


def check(pipeline: Path, file: str, **changes: Any) -> None:
    check_configuration(
        PARTS[file], {**json.loads((pipeline / file).read_text()), **changes}, f"policy.model=x: {file}"
    )


@pytest.mark.parametrize("file", PARTS)
def test_what_the_libraries_write_passes(pipeline_dir: Path, file: str) -> None:
    check(pipeline_dir, file)


@pytest.mark.parametrize(("file", "key", "value", "said"), REFUSED)
def test_a_wrong_value_is_named_with_its_key(pipeline_dir: Path, file: str, key: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(pipeline_dir, file, **{key: value})
    assert str(caught.value).startswith(f"policy.model=x: {file}: {key}={value!r} {said}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("file", "key", "value"), TAKEN)
def test_what_the_libraries_take_passes(pipeline_dir: Path, file: str, key: str, value: Any) -> None:
    check(pipeline_dir, file, **{key: value})


def test_values_that_do_not_go_together_are_told_as_the_library_tells_them(pipeline_dir: Path) -> None:
    said = r"^policy\.model=x: unet/config\.json does not describe a UNet2DConditionModel \(num_channels \(8\) must"
    with pytest.raises(ConfigError, match=said):
        check(pipeline_dir, "unet/config.json", norm_num_groups=7)


def test_a_long_value_is_shown_in_short(pipeline_dir: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        check(pipeline_dir, "unet/config.json", in_channels={str(i): "x" * 1000 for i in range(1000)})
    assert len(str(caught.value)) < 300
