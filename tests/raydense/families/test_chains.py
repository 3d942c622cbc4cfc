"""Every kind of model draws what diffusers' own pipeline draws, and all that its network is given matters."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
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

PROMPT, STEPS, SIZE, ETA = "a cat", 5, 8, 0.7
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
VAE = {  # scale and shift, as published; of `sd`, AutoencoderKL's default
    "sd": (0.18215, 0.0),
    "sdxl": (0.13025, 0.0),
    "sd3": (1.5305, 0.0609),
    "sd3-without-t5": (1.5305, 0.0609),
    "flux": (0.3611, 0.1159),
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


def load(directory: Path, guidance: float, *, noisy: bool = False) -> Policy:
    """With its noise switched off, or with that of its own dynamics."""
    files = read_pipeline(str(directory), None, fetch=False)
    family = family_of(files, guidance_scale=guidance, text_tokens=TEXT_TOKENS, latent_size=SIZE)
    chain: dict[str, Any] = {"eta": ETA if noisy else 0.0, "dynamics": "ddim"}
    if "cps" in family.dynamics:
        chain = {"eta": ETA, "dynamics": "cps" if noisy else "ode", "levels": Levels(family.tokens, family.even_levels)}
    return load_policy(
        family,
        make_schedule(files["scheduler"] or {}, STEPS, **chain),
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


@torch.no_grad()
def test_a_picture_is_what_its_vae_makes_of_unscaled_latents(kind: str, directory: Path, noise: torch.Tensor) -> None:
    vae, latents = load_pipeline(directory).vae, noise[:, 0]
    scale, shift = VAE[kind]
    pixels = vae.decode(latents / scale + shift).sample
    expected = ((pixels / 2 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1).numpy()
    found = load(directory, 1.0).decode(latents)
    assert np.abs(found - expected).max() <= 0.51  # rounded, and to the last bits
    if shift:
        without = ((vae.decode(latents / scale).sample / 2 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1).numpy()
        assert np.abs(found - without).max() > 1


def test_log_probabilities_of_a_noisy_chain_are_the_slow_ones(
    kind: str, directory: Path, noise: torch.Tensor, perturbed: Callable[..., Any]
) -> None:
    guidance = KINDS[kind][1]
    policy = load(directory, guidance, noisy=True)
    policy.bind(perturbed(policy, scale=0.1))
    given = repeated(policy.encode(PROMPT), 1)
    latents, log_probs = rollout(policy, noise, given, torch.float32)
    sigmas = slow_levels(directory, policy.family.tokens)
    noisy = STEPS if policy.family.dynamics == ("ddim",) else STEPS - 1
    for step in range(noisy):
        x, after = (latents[0, at].numpy().astype(np.float64) for at in (step, step + 1))
        with torch.no_grad():
            output = policy.predict(latents[:1, step], torch.tensor([step]), given)[0].numpy().astype(np.float64)
        mean, std = slow_ddim(directory, step, x, output) if sigmas is None else slow_cps(sigmas, step, x, output)
        density = -((after - mean) ** 2) / (2 * std**2) - math.log(std) - math.log(2 * math.pi) / 2
        assert float(log_probs[0, step]) == pytest.approx(density.mean(), abs=2e-4)


def slow_levels(directory: Path, tokens: int) -> list[float] | None:
    """Of a flow, as its scheduler's file says: evenly spaced in diffusers' way, then shifted. None of another."""
    file = json.loads((directory / "scheduler" / "scheduler_config.json").read_text())
    if "Flow" not in file["_class_name"]:
        return None
    if file.get("use_dynamic_shifting"):  # FLUX
        mu = 0.5 + (tokens - 256) * (1.15 - 0.5) / (4096 - 256)
        even = [1 - i * (1 - 1 / STEPS) / (STEPS - 1) for i in range(STEPS)]
        return [*(math.exp(mu) / (math.exp(mu) + (1 / s - 1)) for s in even), 0.0]
    shift = file["shift"]

    def shifted(sigma: float) -> float:
        return float(shift * sigma / (1 + (shift - 1) * sigma))

    last = shifted(1 / 1000)
    return [*(shifted(1 + i * (last - 1) / (STEPS - 1)) for i in range(STEPS)), 0.0]


def slow_cps(sigmas: list[float], step: int, x: Any, velocity: Any) -> tuple[Any, float]:
    now, after = sigmas[step], sigmas[step + 1]
    std = after * math.sin(ETA * math.pi / 2)
    x0, x1 = x - now * velocity, x + (1 - now) * velocity
    return (1 - after) * x0 + math.sqrt(after**2 - std**2) * x1, std


def slow_ddim(directory: Path, step: int, x: Any, epsilon: Any) -> tuple[Any, float]:
    """METHOD §3 on the scaled-linear betas and the leading timesteps of Stable Diffusion's files."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=np.float64) ** 2
    table = np.cumprod(1 - betas)
    t = (STEPS - 1 - step) * (1000 // STEPS) + 1
    now, after = table[t], table[max(t - 1000 // STEPS, 0)]
    std = ETA * math.sqrt((1 - after) / (1 - now) * (1 - now / after))
    x0 = (x - math.sqrt(1 - now) * epsilon) / math.sqrt(now)
    return math.sqrt(after) * x0 + math.sqrt(1 - after - std**2) * epsilon, std


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
