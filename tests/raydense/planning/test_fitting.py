"""A pipeline whose parts do not fit together is refused in a line: by a family's rule, and by one latent's way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_families import write_flux, write_sd3, write_sdxl
from small_models import write_pipeline

from raydense.config import ConfigError
from raydense.families.family import Family
from raydense.families.known import family_of
from raydense.pipelines.pipeline_files import read_pipeline
from raydense.planning.fitting import check_fit

WRITERS: dict[str, Callable[..., Any]] = {
    "sd": write_pipeline,
    "sdxl": write_sdxl,
    "sd3": write_sd3,
    "flux": write_flux,
}
MakeFamily = Callable[..., Family]
RULED: list[tuple[str, str, Mapping[str, Any], str]] = [
    (
        "sd",
        "unet",
        {"cross_attention_dim": 12},
        "unet/config.json: cross_attention_dim=12, but the text encoder's hidd",
    ),
    ("sd", "unet", {"in_channels": 9}, "unet/config.json: in_channels=9, as for inpainting, but the VAE's latent_chan"),
    ("sd", "vae", {"out_channels": 4}, "vae/config.json: out_channels=4, but a picture has 3"),
    ("sdxl", "unet", {"cross_attention_dim": 16}, "cross_attention_dim=16, but its text encoders' states have 28 toge"),
    ("sdxl", "unet", {"projection_class_embeddings_input_dim": 40}, "projection_class_embeddings_input_dim=40, but 6 "),
    ("sdxl", "unet", {"addition_time_embed_dim": 4}, "projection_class_embeddings_input_dim=60, but 6 sizes and the "),
    ("sdxl", "tokenizer_2", {"model_max_length": 9}, "its text encoders read 12 and 9 tokens, whose states stand side"),
    ("sd3", "transformer", {"caption_projection_dim": 24}, "caption_projection_dim=24, but its 2 heads of 8 make 16"),
    ("sd3", "transformer", {"joint_attention_dim": 64}, "joint_attention_dim=64, but the T5's d_model=32"),
    (
        "sd3",
        "transformer",
        {"pooled_projection_dim": 30},
        "pooled_projection_dim=30, but its CLIPs' embeddings have 28",
    ),
    ("sd3", "transformer", {"sample_size": 26}, "sample_size=26x26 is beyond the 24 that its pos_embed_max_size=12 ha"),
    ("sd3", "transformer", {"sample_size": 7}, "transformer/config.json: sample_size=7x7 cannot be cut into patches"),
    ("sd3", "transformer", {"pos_embed_max_size": 3}, "sample_size=8x8 is beyond the 6 that its pos_embed_max_size=3"),
    ("sd3", "transformer", {"in_channels": 4}, "transformer/config.json: in_channels=4, but the VAE's latent_channels"),
    ("sd3", "text_encoder_2", {"max_position_embeddings": 8}, "max_position_embeddings=8, but it reads the 12 tokens"),
    ("flux", "transformer", {"axes_dims_rope": [2, 2, 2]}, "axes_dims_rope=[2, 2, 2] should be 3 even numbers, togeth"),
    (
        "flux",
        "transformer",
        {"axes_dims_rope": [4, 4]},
        "axes_dims_rope=[4, 4] should be 3 even numbers, together atte",
    ),
    ("flux", "transformer", {"axes_dims_rope": [1, 3, 4]}, "should be 3 even numbers, together attention_head_dim=8"),
    ("flux", "transformer", {"attention_head_dim": 16}, "axes_dims_rope=[2, 2, 4] should be 3 even numbers, together "),
    ("flux", "transformer", {"patch_size": 2}, "patch_size=2, but latents come packed: it must be 1"),
    ("flux", "transformer", {"joint_attention_dim": 16}, "joint_attention_dim=16, but text_encoder_2's d_model=32"),
    ("flux", "transformer", {"pooled_projection_dim": 8}, "pooled_projection_dim=8, but text_encoder's hidden_size=16"),
]
UNRULED: list[tuple[str, str, Mapping[str, Any], str]] = [
    ("sd", "unet", {"conv_out_kernel": 2}, "unet/config.json: it gives [1, 4, 7, 7] in the place of [1, 4, 8, 8]"),
    ("sdxl", "unet", {"conv_in_kernel": 2}, "unet/config.json: it "),
    ("sd3", "text_encoder", {"num_hidden_layers": 0}, "text_encoder/config.json, text_encoder_2/config.json, text_enc"),
    ("flux", "vae", {"latent_channels": 8}, "vae/config.json: it cannot be called ("),
]


@pytest.fixture
def family(make_once: Callable[..., Path]) -> MakeFamily:
    """The small pipeline's of a kind, with other values in a part's file."""

    def make(kind: str, part: str = "", change: Mapping[str, Any] = {}) -> Family:
        model = make_once("pipeline" if kind == "sd" else f"kind-{kind}", WRITERS[kind])
        files = read_pipeline(str(model), None, fetch=False)
        parts = {name: {**(file or {}), **(change if name == part else {})} for name, file in files.parts.items()}
        sizes = {"text_tokens": 12} if kind in ("sd3", "flux") else {}
        latent_size = None if kind == "sd3" else 8  # whose own is among what may be wrong
        return family_of(replace(files, parts=parts), latent_size=latent_size, guidance_scale=3.0, **sizes)

    return make


@pytest.mark.parametrize("kind", WRITERS)
def test_what_fits_passes(kind: str, family: MakeFamily) -> None:
    assert [*family(kind).problems()] == []
    check_fit(family(kind))


@pytest.mark.parametrize(("kind", "part", "change", "said"), RULED)
def test_a_rule_names_the_value_that_a_run_would_die_of(
    kind: str, part: str, change: Mapping[str, Any], said: str, family: MakeFamily
) -> None:
    changed = family(kind, part, change)
    assert [said in problem for problem in changed.problems()].count(True) == 1
    with pytest.raises(ConfigError):
        check_fit(changed)


@pytest.mark.parametrize(("kind", "part", "change", "said"), UNRULED)
def test_what_no_rule_names_is_found_on_a_latents_way(
    kind: str, part: str, change: Mapping[str, Any], said: str, family: MakeFamily
) -> None:
    changed = family(kind, part, change)
    with pytest.raises(ConfigError) as caught:
        check_fit(changed)
    assert f"policy.model={changed.files.model}: {said}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(f"; give {changed.advice}")
