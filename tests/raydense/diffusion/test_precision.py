"""The network's dtype, and what costs memory: whatever it is, LoRA, schedule and log-probabilities are float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor2_0

from actors.sampler import rollout
from raydense.config import ConfigError
from raydense.core.types import PolicyWeights
from raydense.diffusion.policy import Policy
from raydense.families.conditioning import repeated

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
Make = Callable[..., Policy]


@pytest.fixture(scope="module")
def weights(make_policy: Make, perturbed: Callable[..., PolicyWeights]) -> PolicyWeights:
    return perturbed(make_policy())


def noise(count: int = 3) -> torch.Tensor:
    return torch.randn((count, 5, 4, 8, 8), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_only_the_frozen_networks_have_the_chosen_dtype(
    make_policy: Make, weights: PolicyWeights, dtype: torch.dtype
) -> None:
    policy = make_policy(dtype=dtype, with_decoder=True)
    policy.bind(weights)  # the checksum of what is live: every bit of the float32 LoRA arrived
    lora = {id(p) for p in policy.parameters()}
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    assert {p.dtype for p in policy.network.parameters() if id(p) not in lora} == {dtype}
    assert {p.dtype for p in policy.vae.parameters()} == {dtype}
    schedule = policy.schedule
    constants = (schedule.signal, schedule.noise, schedule.next_signal, schedule.next_noise, schedule.sigma)
    assert {x.dtype for x in constants} == {torch.float32}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.no_grad()
def test_a_rollout_in_any_dtype_has_float32_log_probs_and_rescores_to_zero(
    make_policy: Make, weights: PolicyWeights, dtype: torch.dtype
) -> None:
    policy = make_policy(dtype=dtype)
    policy.bind(weights)
    embeds = repeated(policy.encode("a cat"), 3)
    latents, stored = rollout(policy, noise(), embeds, torch.float16)
    assert (latents.dtype, stored.dtype) == (torch.float16, torch.float32)
    for step in range(4):
        again = policy.log_prob(latents[:, step], latents[:, step + 1], torch.full((3,), step), embeds)
        assert again.dtype == torch.float32
        assert torch.equal(again, stored[:, step])
    spread = torch.unique(stored).numel()
    assert spread == stored.numel()  # in bfloat16 they would fall together


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@torch.no_grad()
def test_sixteen_bits_predict_nearly_what_float32_predicts(
    make_policy: Make, weights: PolicyWeights, dtype: torch.dtype
) -> None:
    exact, rounded = make_policy(), make_policy(dtype=dtype)
    for policy in (exact, rounded):
        policy.bind(weights)
    x, t = noise()[:, 0], torch.tensor([0, 1, 2])
    embeds = repeated(exact.encode("a cat"), 3)
    expected, found = exact.predict(x, t, embeds), rounded.predict(x, t, embeds)
    assert found.dtype == torch.float32
    error = float((found - expected).abs().max() / expected.abs().max())
    assert 0 < error < (0.05 if dtype == torch.bfloat16 else 0.01)


def test_every_dtype_conditions_on_the_same_embeddings(make_policy: Make) -> None:
    embeds = [make_policy(dtype=dtype).encode("a cat")["prompt_embeds"] for dtype in DTYPES]
    assert all(torch.equal(e, embeds[0]) for e in embeds)


def _gradients(policy: Policy) -> list[torch.Tensor]:
    embeds = repeated(policy.encode("a cat"), 2)
    policy.predict(noise(2)[:, 0], torch.tensor([0, 1]), embeds).square().mean().backward()
    return [p.grad for p in policy.parameters() if p.grad is not None]


def test_gradient_checkpointing_computes_again_and_changes_no_gradient(
    make_policy: Make, weights: PolicyWeights
) -> None:
    gradients, calls = [], []
    for checkpointing in (False, True):
        policy = make_policy(gradient_checkpointing=checkpointing)
        policy.bind(weights)
        count = [0]
        policy.network.mid_block.resnets[1].register_forward_pre_hook(lambda *_, c=count: c.__setitem__(0, c[0] + 1))
        gradients.append(_gradients(policy))
        calls.append(count[0])
    assert calls == [1, 2]  # once more, in the backward pass
    assert len(gradients[0]) == len(gradients[1]) == 64
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=1e-5, atol=1e-7)


def test_channels_last_is_a_layout_and_moves_rounding_alone(make_policy: Make, weights: PolicyWeights) -> None:
    gradients = []
    for channels_last in (False, True):
        policy = make_policy(channels_last=channels_last)
        policy.bind(weights)
        kernel = policy.network.mid_block.resnets[0].conv1.weight
        assert kernel.is_contiguous(memory_format=torch.channels_last) is channels_last
        gradients.append(torch.cat([g.flatten() for g in _gradients(policy)]))
    plain, other = gradients
    assert plain.norm() > 0
    assert (other - plain).norm() < 1e-5 * plain.norm()


def test_decoding_in_slices_bounds_a_call_and_changes_no_picture(make_policy: Make) -> None:
    whole, sliced = make_policy(with_decoder=True), make_policy(with_decoder=True, decode_batch=2)
    sizes: list[int] = []
    sliced.vae.decoder.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    latents = noise(5)[:, 0]
    difference = whole.decode(latents).astype(int) - sliced.decode(latents)
    assert sizes == [2, 2, 1]
    assert np.abs(difference).max() <= 1


def test_attention_is_pytorchs_scaled_dot_product(make_policy: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, calls = make_policy(guidance_scale=1.0), []
    original = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: (calls.append(1), original(*a, **k))[1])
    policy.predict(noise(1)[:, 0], torch.tensor([0]), repeated(policy.encode("a cat"), 1))
    processors = policy.network.attn_processors
    assert {type(p) for p in processors.values()} == {AttnProcessor2_0}
    assert len(calls) >= len(processors) == 8


# -- which pipelines load ---------------------------------------------------------------------------------------


def test_a_safety_checker_beside_the_pipeline_is_never_read(
    make_policy: Make, pipeline_copy: Callable[[], Path]
) -> None:
    model = pipeline_copy()
    (model / "safety_checker").mkdir()
    (model / "safety_checker" / "config.json").write_text("no JSON")
    (model / "model_index.json").write_text(
        '{"_class_name": "StableDiffusionPipeline", "safety_checker": ["nowhere", "Broken"]}'
    )
    policy = make_policy(model, with_decoder=True)
    assert not hasattr(policy, "safety_checker")


def test_weights_in_pickles_are_not_loaded(make_policy: Make, pipeline_copy: Callable[[], Path]) -> None:
    model = pipeline_copy()
    file = model / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(ConfigError, match=r"unet has diffusion_pytorch_model\.bin, which can run code, and no safete"):
        make_policy(model)


@pytest.fixture
def pipeline_copy(pipeline_dir: Path, tmp_path: Path) -> Callable[[], Path]:
    def copy() -> Path:
        import shutil

        return Path(shutil.copytree(pipeline_dir, tmp_path / "model"))

    return copy
