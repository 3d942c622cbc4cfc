"""The small pipelines that other tests stand on: each is diffusers' own, and each input of its network can be seen."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers_chains import TEXT_TOKENS, load_pipeline, reference_latents
from small_families import T5_WIDTH, write_flux, write_sd3, write_sdxl
from small_models import write_pipeline

PROMPT = "a red cat"
WRITERS: dict[str, Callable[[Path], Path]] = {
    "StableDiffusionPipeline": write_pipeline,
    "StableDiffusionXLPipeline": write_sdxl,
    "StableDiffusion3Pipeline": write_sd3,
    "StableDiffusion3Pipeline without T5": partial(write_sd3, t5=False),
    "FluxPipeline": write_flux,
}
NEW = [name for name in WRITERS if name != "StableDiffusionPipeline"]  # the other shows little of some inputs
MakeFamily = Callable[[str], Path]


@pytest.fixture
def family(make_once: Callable[..., Path]) -> MakeFamily:
    return lambda name: make_once(f"family-{name.replace(' ', '-')}", WRITERS[name])


def channels(name: str) -> int:
    return 4 if name in ("StableDiffusionPipeline", "StableDiffusionXLPipeline") else 16


def noise(name: str) -> torch.Tensor:
    return torch.randn(1, channels(name), 8, 8, generator=torch.Generator().manual_seed(5))


def moved(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def call(pipeline: Any, **settings: Any) -> Any:
    if hasattr(pipeline, "transformer"):
        settings = {"max_sequence_length": TEXT_TOKENS, **settings}
    return pipeline(PROMPT, height=16, width=16, num_inference_steps=4, **settings)


@pytest.mark.parametrize("name", WRITERS)
def test_its_own_class_loads_it_and_draws(name: str, family: MakeFamily) -> None:
    pipeline = load_pipeline(family(name))
    assert type(pipeline).__name__ == name.split()[0]
    images = call(pipeline, output_type="np", generator=torch.Generator().manual_seed(0)).images
    assert images.shape == (1, 16, 16, 3)
    assert np.isfinite(images).all()
    assert images.std() > 0.05


@pytest.mark.parametrize("name", NEW)
def test_it_is_small_and_the_same_each_time(name: str, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    first, second = WRITERS[name](tmp_path / "first"), WRITERS[name](tmp_path / "second")
    assert torch.equal(torch.get_rng_state(), state)
    contents = [{p.relative_to(d): p.read_bytes() for p in d.rglob("*") if p.is_file()} for d in (first, second)]
    assert contents[0] == contents[1]
    assert sum(map(len, contents[0].values())) < 1e6


def first_call(pipeline: Any) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The network, and the arguments that the pipeline itself gives it in its first step."""
    network: torch.nn.Module = getattr(pipeline, "transformer", None) or pipeline.unet
    calls: list[dict[str, Any]] = []

    def keep(_: torch.nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        calls.append(inspect.signature(network.forward).bind(*positional, **named).arguments)

    handle = network.register_forward_pre_hook(keep, with_kwargs=True)
    call(pipeline, output_type="latent")
    handle.remove()
    return network, calls[0]


EVERYTHING = (...,)
FIRST_CLIP, SECOND_CLIP = (..., slice(None, 16)), (..., slice(16, 28))
CLIP_TOKENS, T5_TOKENS = slice(None, 12), (slice(None), slice(12, None))
PARTS = [
    ("StableDiffusionXLPipeline", "timestep", EVERYTHING),
    ("StableDiffusionXLPipeline", "encoder_hidden_states", FIRST_CLIP),
    ("StableDiffusionXLPipeline", "encoder_hidden_states", SECOND_CLIP),
    ("StableDiffusionXLPipeline", "text_embeds", EVERYTHING),
    ("StableDiffusionXLPipeline", "time_ids", (..., slice(None, 2))),
    ("StableDiffusionXLPipeline", "time_ids", (..., slice(4, None))),
    ("StableDiffusion3Pipeline", "timestep", EVERYTHING),
    ("StableDiffusion3Pipeline", "encoder_hidden_states", (slice(None), CLIP_TOKENS, slice(None, 16))),
    ("StableDiffusion3Pipeline", "encoder_hidden_states", (slice(None), CLIP_TOKENS, slice(16, 28))),
    ("StableDiffusion3Pipeline", "encoder_hidden_states", T5_TOKENS),
    ("StableDiffusion3Pipeline", "pooled_projections", FIRST_CLIP),
    ("StableDiffusion3Pipeline", "pooled_projections", SECOND_CLIP),
    ("FluxPipeline", "timestep", EVERYTHING),
    ("FluxPipeline", "encoder_hidden_states", EVERYTHING),
    ("FluxPipeline", "pooled_projections", EVERYTHING),
    ("FluxPipeline", "guidance", EVERYTHING),
    ("FluxPipeline", "img_ids", (..., 1)),
    ("FluxPipeline", "img_ids", (..., 2)),
]


@torch.no_grad()
@pytest.mark.parametrize(("name", "key", "part"), PARTS)
def test_the_network_sees_each_input(name: str, key: str, part: tuple[Any, ...], family: MakeFamily) -> None:
    network, arguments = first_call(load_pipeline(family(name)))
    before = network(**arguments)[0]
    assert 0.3 < float(before.std()) < 3
    holder = arguments if key in arguments else arguments["added_cond_kwargs"]
    holder[key] = holder[key].clone()
    assert bool((holder[key][part] != 0).any())
    holder[key][part] = 0
    assert moved(network(**arguments)[0], before) > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("name", NEW)
def test_the_decoder_sees_how_latents_are_scaled(name: str, family: MakeFamily) -> None:
    vae, latents = load_pipeline(family(name)).vae, noise(name)
    scale, shift = vae.config.scaling_factor, vae.config.shift_factor or 0.0
    image = vae.decode(latents / scale + shift).sample
    assert moved(vae.decode(latents + shift).sample, image) > 1e-2
    if shift:
        assert moved(vae.decode(latents / scale).sample, image) > 1e-2


@pytest.mark.parametrize("name", NEW)
def test_a_reference_is_reproducible_and_follows_what_it_is_given(name: str, family: MakeFamily) -> None:
    draw = partial(reference_latents, family(name))
    given: dict[str, Any] = {"prompt": PROMPT, "noise": noise(name), "steps": 10, "guidance": 3.0}
    latents = draw(**given)
    assert latents.shape == (1, channels(name), 8, 8)
    assert latents.dtype == torch.float32
    assert 0.5 < float(latents.std()) < 20
    assert torch.equal(draw(**given), latents)
    other: list[dict[str, Any]] = [{"prompt": "a dog"}, {"guidance": 4.0}, {"noise": noise(name).flip(-1)}]
    if name == "FluxPipeline":
        other.append({"negative_prompt": "a dog", "true_cfg_scale": 2.0})
    else:
        other.append({"negative_prompt": "a dog"})
    if name == "StableDiffusionXLPipeline":
        other.append({"negative_prompt": ""})  # encoded, where None is zeros
    for change in other:
        assert moved(draw(**{**given, **change}), latents) > 1e-2, change


@torch.no_grad()
def test_one_step_of_flux_is_the_noise_minus_the_velocity(family: MakeFamily) -> None:
    pipeline = load_pipeline(family("FluxPipeline"))
    x = noise("FluxPipeline")
    states, pooled, text_ids = pipeline.encode_prompt(PROMPT, max_sequence_length=TEXT_TOKENS)
    rows = torch.stack([torch.tensor([0.0, i, j]) for i in range(4) for j in range(4)])
    packed = torch.stack([x[0, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten() for i in range(4) for j in range(4)])
    velocity = pipeline.transformer(packed[None], states, pooled, torch.ones(1), rows, text_ids, torch.tensor([3.0]))[0]
    expected = x.clone()
    for n, patch in enumerate(velocity[0]):
        i, j = divmod(n, 4)
        expected[0, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] -= patch.view(16, 2, 2)
    found = reference_latents(family("FluxPipeline"), PROMPT, x, steps=1, guidance=3.0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_text_is_padded_as_in_the_real_pipelines(family: MakeFamily) -> None:
    pipeline = load_pipeline(family("StableDiffusion3Pipeline"))
    tokenizers = pipeline.tokenizer, pipeline.tokenizer_2, pipeline.tokenizer_3
    ids = [t(PROMPT, padding="max_length", max_length=12, truncation=True).input_ids for t in tokenizers]
    assert [t.pad_token for t in tokenizers] == ["<|endoftext|>", "!", "<pad>"]
    assert [len(row) for row in ids] == [12, 12, 12]
    assert [row[-1] for row in ids] == [t.pad_token_id for t in tokenizers]
    expected = ["▁a", "▁r", "e", "d", "▁c", "a", "t", "</s>"]
    assert pipeline.tokenizer_3.convert_ids_to_tokens(ids[2])[:8] == expected
    assert pipeline.text_encoder_3.config.d_model == T5_WIDTH
