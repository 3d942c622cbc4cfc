"""Every kind of model draws what diffusers' own pipeline draws, and all that its network is given matters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers_chains import TEXT_TOKENS, load_pipeline, reference_latents
from peft import LoraConfig
from small_families import write_flux, write_sd3, write_sdxl
from small_models import write_pipeline

from actors.sampler import rollout
from raydense.diffusion.flow import Levels
from raydense.diffusion.kernel import make_schedule
from raydense.diffusion.loading import load_policy
from raydense.diffusion.lora import save_diffusers_lora
from raydense.diffusion.policy import Policy
from raydense.families.conditioning import Conditioning, repeated
from raydense.families.known import FAMILIES, family_of
from raydense.pipelines.pipeline_files import LAYOUTS, read_pipeline

PROMPT, STEPS, SIZE = "a cat", 5, 8
TOLERANCE = 1e-4
KINDS: dict[str, tuple[Callable[..., Any], float]] = {  # name: its writer, and a guidance scale
    "sd": (write_pipeline, 3.0),
    "sdxl": (write_sdxl, 3.0),
    "sd3": (write_sd3, 3.0),
    "sd3-without-t5": (lambda directory: write_sd3(directory, t5=False), 3.0),
    "flux": (write_flux, 3.5),
}
GIVEN = {
    "sd": ["prompt_embeds"],
    "sdxl": ["pooled_prompt_embeds", "prompt_embeds", "time_ids"],
    **{kind: ["pooled_prompt_embeds", "prompt_embeds"] for kind in ("sd3", "sd3-without-t5", "flux")},
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def directory(kind: str, make_once: Callable[..., Path]) -> Path:
    return make_once(f"kind-{kind}", KINDS[kind][0])


@pytest.fixture(scope="module")
def noise(directory: Path) -> torch.Tensor:
    shape = (1, STEPS + 1, *load(directory, 1.0).family.latent_shape)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def load(directory: Path, guidance: float) -> Policy:
    """With its noise switched off."""
    files = read_pipeline(str(directory), None, fetch=False)
    family = family_of(files, guidance_scale=guidance, text_tokens=TEXT_TOKENS, latent_size=SIZE)
    without_noise: dict[str, Any] = {"eta": 0.0, "dynamics": "ddim"}
    if "cps" in family.dynamics:
        without_noise = {"eta": 1.0, "dynamics": "ode", "levels": Levels(family.tokens, family.even_levels)}
    return load_policy(
        family,
        make_schedule(files["scheduler"] or {}, STEPS, **without_noise),
        lora=LoraConfig(r=2, target_modules=list(family.lora_targets), init_lora_weights="gaussian"),
        seed=0,
        dtype=torch.float32,
        device=torch.device("cpu"),
        with_decoder=True,
    )


def drawn(policy: Policy, noise: torch.Tensor, given: Conditioning) -> torch.Tensor:
    return rollout(policy, noise, repeated(given, len(noise)), torch.float32)[0][:, -1]


def test_the_kinds_are_those_that_files_can_name() -> None:
    assert FAMILIES.keys() == LAYOUTS.keys()


def test_without_noise_it_draws_what_diffusers_draws(kind: str, directory: Path, noise: torch.Tensor) -> None:
    guidance = KINDS[kind][1]
    policy = load(directory, guidance)
    given = policy.encode(PROMPT)
    assert {name: tuple(t.shape) for name, t in given.items()} == policy.family.conditioning_shapes
    assert list(given) == GIVEN[kind]
    latents = drawn(policy, noise, given)
    expected = reference_latents(directory, PROMPT, noise[:, 0], steps=STEPS, guidance=guidance)
    torch.testing.assert_close(latents, expected, rtol=0, atol=TOLERANCE)
    picture = load_pipeline(directory).image_processor.postprocess(
        torch.from_numpy(policy.decode(latents)).permute(0, 3, 1, 2) / 127.5 - 1, output_type="np"
    )
    assert picture.std() > 0.01


def test_each_thing_that_it_is_given_moves_it(kind: str, directory: Path, noise: torch.Tensor) -> None:
    guidance = KINDS[kind][1]
    policy = load(directory, guidance)
    given = dict(policy.encode(PROMPT))
    latents = drawn(policy, noise, given)
    for changed in without_one(kind, given):
        assert float((drawn(policy, noise, changed) - latents).abs().max()) > 100 * TOLERANCE
    other = load(directory, guidance + 1)
    assert float((drawn(other, noise, given) - latents).abs().max()) > 100 * TOLERANCE


def without_one(kind: str, given: dict[str, torch.Tensor]) -> Iterator[Conditioning]:
    for name, tensor in given.items():
        yield {**given, name: torch.zeros_like(tensor)}
    if kind == "sd3":  # the T5's states follow the CLIPs'
        states = given["prompt_embeds"].clone()
        states[-TEXT_TOKENS:] = 0
        yield {**given, "prompt_embeds": states}


def test_the_lora_is_its_pipelines(
    kind: str, directory: Path, noise: torch.Tensor, perturbed: Callable[..., Any], tmp_path: Path
) -> None:
    guidance = KINDS[kind][1]
    policy = load(directory, guidance)
    base = drawn(policy, noise, policy.encode(PROMPT))
    policy.bind(perturbed(policy))
    latents = drawn(policy, noise, policy.encode(PROMPT))
    assert float((latents - base).abs().max()) > 100 * TOLERANCE
    lora = LoraConfig(r=2, lora_alpha=8, target_modules=list(policy.family.lora_targets))
    save_diffusers_lora(tmp_path, policy.weights(), lora, denoiser=policy.family.layout.denoiser)
    pipeline = load_pipeline(directory)
    pipeline.load_lora_weights(tmp_path)
    found = reference_latents(directory, PROMPT, noise[:, 0], steps=STEPS, guidance=guidance, pipeline=pipeline)
    torch.testing.assert_close(found, latents, rtol=0, atol=TOLERANCE)


def test_sdxls_unconditional_half_is_zeros_where_its_file_says_so(make_once: Callable[..., Path]) -> None:
    policy = load(make_once("kind-sdxl", write_sdxl), 3.0)
    empty, prompt = policy.family.unconditional(policy.texts), policy.encode("")
    assert not empty["prompt_embeds"].any()
    assert not empty["pooled_prompt_embeds"].any()
    assert torch.equal(empty["time_ids"], prompt["time_ids"])
    assert empty["time_ids"].tolist() == [16, 16, 0, 0, 16, 16]
    policy.family.files.index["force_zeros_for_empty_prompt"] = False  # type: ignore[index]
    assert policy.family.unconditional(policy.texts)["prompt_embeds"].equal(prompt["prompt_embeds"])
