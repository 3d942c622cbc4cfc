"""The policy: its LoRA, that binding proves itself, guidance, and the reference policy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer

from raydense.config import ConfigError
from raydense.core.interfaces import NonFiniteError
from raydense.core.types import PolicyWeights
from raydense.diffusion.kernel import make_schedule
from raydense.diffusion.policy import Policy
from raydense.families.conditioning import repeated, stacked
from raydense.families.known import family_of
from raydense.pipelines.pipeline_files import PipelineFiles


def inputs(policy: Policy, count: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x_t, step indices and embeddings of `count` different transitions."""
    x = torch.randn((count, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    prompts = ["a cat", "a dog", "a hen"][:count]
    return x, torch.arange(count) % policy.schedule.num_steps, stacked([policy.encode(p) for p in prompts])


# -- the LoRA ---------------------------------------------------------------------------------------------


def test_every_attention_projection_gets_an_adapter(make_policy: Callable[..., Policy]) -> None:
    tensors = make_policy(rank=2).weights().tensors
    # 4 transformers (1 down, 1 middle, 2 up) of 2 attentions of 4 projections, A and B each
    assert len(tensors) == 4 * 2 * 4 * 2
    # rank × (in + out) a projection; widths 8 (down, up) and 16 (middle), text width 16
    width_8 = 4 * (8 + 8) + 2 * (8 + 8) + 2 * (16 + 8)
    width_16 = 8 * (16 + 16)
    assert sum(array.size for array in tensors.values()) == 2 * (3 * width_8 + width_16)
    assert all(array.dtype == np.float32 for array in tensors.values())


def test_stable_diffusion_1_5_at_rank_4_has_the_papers_797184_values() -> None:
    with torch.device("meta"):  # shapes without memory
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", set_alpha_to_one=False, steps_offset=1
    )
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    lora = LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=targets)
    family = family_of(PipelineFiles("sd15", parts={"unet": unet.config}))
    policy = Policy(family, unet, {}, None, make_schedule(scheduler.config, 50, 1.0), lora, seed=0)
    assert len(policy.parameters()) == 256
    assert sum(p.numel() for p in policy.parameters()) == 797_184


@pytest.mark.parametrize(
    ("scheduler", "spacing", "expected"),
    [
        ({}, None, [751, 501, 251, 1]),
        ({"timestep_spacing": "trailing"}, None, [999, 749, 499, 249]),
        ({"timestep_spacing": "trailing"}, "leading", [751, 501, 251, 1]),
        ({"_class_name": "EulerDiscreteScheduler", "set_alpha_to_one": None}, "leading", [751, 501, 251, 1]),
    ],
)
def test_it_denoises_at_the_timesteps_of_its_pipelines_scheduler(
    make_policy: Callable[..., Policy],
    pipeline_dir: Path,
    tmp_path: Path,
    scheduler: dict[str, Any],
    spacing: str | None,
    expected: list[int],
) -> None:
    shutil.copytree(pipeline_dir, tmp_path / "model")
    file = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **scheduler}))
    assert make_policy(tmp_path / "model", spacing=spacing).schedule.timesteps.tolist() == expected


def test_only_the_lora_is_trainable(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy(with_decoder=True)
    trainable = {id(p) for p in policy.parameters()}
    for module in (policy.network, policy.texts["text_encoder"].network, policy.vae):
        assert not module.training
        assert {id(p) for p in module.parameters() if p.requires_grad} <= trainable


def test_b_starts_at_zero_and_a_normal_with_deviation_one_over_rank(make_policy: Callable[..., Policy]) -> None:
    tensors = make_policy(rank=4).weights().tensors
    a = np.concatenate([array.ravel() for name, array in tensors.items() if "lora_A" in name])
    assert a.size > 1000
    assert a.std() == pytest.approx(1 / 4, rel=0.06)
    assert abs(a.mean()) < 0.03
    assert all(not array.any() for name, array in tensors.items() if "lora_B" in name)


def test_the_seed_decides_a_and_leaves_the_global_stream_alone(make_policy: Callable[..., Policy]) -> None:
    torch.manual_seed(0)
    first = make_policy(seed=1).weights().checksum
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    again = make_policy(seed=1).weights().checksum
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first == again != make_policy(seed=2).weights().checksum


def test_targets_that_match_nothing_are_refused(make_policy: Callable[..., Policy]) -> None:
    with pytest.raises(ValueError, match="to_qq"):
        make_policy(targets=["to_qq"])


# -- binding ----------------------------------------------------------------------------------------------


def test_bound_weights_are_the_live_ones(make_policy: Callable[..., Policy], perturbed: Callable[..., Any]) -> None:
    trainer, sampler = make_policy(seed=1), make_policy(seed=2)
    weights = perturbed(trainer, version=7)
    sampler.bind(weights)
    assert sampler.weights().checksum == weights.checksum
    assert sampler.version == sampler.weights().version == 7
    trainer.bind(weights)
    assert torch.equal(sampler.predict(*inputs(sampler)), trainer.predict(*inputs(trainer)))


def test_weights_are_a_copy(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    weights = policy.weights()
    with torch.no_grad():
        policy.parameters()[0].add_(1)
    assert PolicyWeights.of(0, weights.tensors).checksum == weights.checksum != policy.weights().checksum


@pytest.mark.parametrize("damage", ["missing", "surplus", "misshapen"])
def test_weights_that_do_not_fit_are_refused_by_name(make_policy: Callable[..., Policy], damage: str) -> None:
    policy = make_policy()
    before = policy.weights()
    tensors = dict(before.tensors)
    name = sorted(tensors)[3]
    if damage == "missing":
        del tensors[name]
    elif damage == "surplus":
        name = "down_blocks.9.to_q.lora_A.default.weight"
        tensors[name] = np.zeros((2, 8), np.float32)
    else:
        tensors[name] = tensors[name][:, :1]
    with pytest.raises(ValueError, match=rf"{damage} \[[^\]]*{name}"):
        policy.bind(PolicyWeights.of(1, tensors))
    assert policy.weights().checksum == before.checksum


def test_every_tensor_missing_is_not_a_silent_training_of_the_base(make_policy: Callable[..., Policy]) -> None:
    with pytest.raises(ValueError, match="missing"):
        make_policy().bind(PolicyWeights.of(1, {}))


def test_a_wrong_checksum_is_refused(make_policy: Callable[..., Policy], perturbed: Callable[..., Any]) -> None:
    policy = make_policy()
    weights = perturbed(policy, version=5)
    with pytest.raises(RuntimeError, match=f"version 5: live checksum {weights.checksum} is not 0123"):
        policy.bind(replace(weights, checksum="0123"))


# -- the reference policy and guidance ----------------------------------------------------------------------


def test_an_untrained_lora_is_exactly_the_reference(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    ours = policy.predict(*inputs(policy))
    with policy.reference():
        assert torch.equal(policy.predict(*inputs(policy)), ours)


def test_the_reference_is_the_pretrained_unet_whatever_the_lora(
    make_policy: Callable[..., Policy], perturbed: Callable[..., Any]
) -> None:
    policy = make_policy()
    base = policy.predict(*inputs(policy)).detach()
    policy.bind(perturbed(policy))
    tuned = policy.predict(*inputs(policy)).detach()
    with policy.reference():
        assert torch.equal(policy.predict(*inputs(policy)), base)
    assert torch.equal(policy.predict(*inputs(policy)), tuned)
    assert float((tuned - base).abs().max()) > 1e-3


def test_the_lora_comes_back_after_an_error_inside_the_reference(
    make_policy: Callable[..., Policy], perturbed: Callable[..., Any]
) -> None:
    policy = make_policy()
    policy.bind(perturbed(policy))
    tuned = policy.predict(*inputs(policy))
    with pytest.raises(KeyError), policy.reference():
        raise KeyError
    assert torch.equal(policy.predict(*inputs(policy)), tuned)


def test_guidance_mixes_the_two_halves(make_policy: Callable[..., Policy]) -> None:
    guided, plain = make_policy(guidance_scale=3.0), make_policy(guidance_scale=1.0)
    x, t, embeds = inputs(plain)
    null = repeated(plain.encode(""), len(x))
    unconditional, conditional = plain.predict(x, t, null), plain.predict(x, t, embeds)
    expected = unconditional + 3.0 * (conditional - unconditional)
    torch.testing.assert_close(guided.predict(x, t, embeds), expected, rtol=1e-5, atol=1e-5)


def test_the_network_sees_the_schedulers_timestep(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy(guidance_scale=1.0, num_steps=50)
    x, _, embeds = inputs(policy, 1)
    direct = policy.network(x, torch.tensor([981 - 20 * 3]), embeds["prompt_embeds"]).sample
    assert torch.equal(policy.predict(x, torch.tensor([3]), embeds), direct)


def test_a_prompts_embedding_is_the_encoders_last_hidden_state(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    text = policy.texts["text_encoder"]
    tokens = text.tokenizer("a cat", padding="max_length", max_length=12, return_tensors="pt").input_ids
    assert torch.equal(policy.encode("a cat")["prompt_embeds"], text.network(tokens).last_hidden_state[0])
    for prompt in ("a cat", "a " + "b" * 50):  # truncated, not refused
        assert {name: tuple(t.shape) for name, t in policy.encode(prompt).items()} == {"prompt_embeds": (12, 16)}
    assert policy.family.conditioning_shapes == {"prompt_embeds": (12, 16)}


def test_the_reference_is_left_whole_even_where_it_could_not_be_entered(
    make_policy: Callable[..., Policy], perturbed: Callable[..., PolicyWeights], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy()
    policy.bind(perturbed(policy))
    x, t, embeds = inputs(policy, 1)
    tuned = policy.predict(x, t, embeds)
    last = [module for module in policy.network.modules() if isinstance(module, BaseTunerLayer)][-1]

    def fail_once(enabled: bool) -> None:
        monkeypatch.undo()
        raise MemoryError("no room")

    monkeypatch.setattr(last, "enable_adapters", fail_once)
    with pytest.raises(MemoryError, match="no room"), policy.reference():
        pass
    assert torch.equal(policy.predict(x, t, embeds), tuned)


# -- pictures and loading -----------------------------------------------------------------------------------


def test_decoding_maps_the_decoders_minus_one_to_one_onto_bytes(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy(with_decoder=True)
    latents = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0)).half()
    pixels = policy.vae.decode(latents.float() / policy.vae.config.scaling_factor).sample
    expected = np.rint(np.clip(pixels.permute(0, 2, 3, 1).numpy() / 2 + 0.5, 0, 1) * 255)
    images = policy.decode(latents)
    assert images.dtype == np.uint8
    assert images.shape == (2, 16, 16, 3)
    assert np.abs(images - expected).max() <= 1  # halves may round either way


def test_a_pixel_that_is_no_number_is_no_black_one(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy(with_decoder=True, decode_batch=1)
    latents = torch.zeros(2, 4, 8, 8)
    policy.decode(latents)
    latents[1, 0, 3, 3] = float("nan")
    with pytest.raises(NonFiniteError, match=r"non-finite pixels \(image decoder\)"):
        policy.decode(latents)


def test_without_its_decoder_a_policy_cannot_decode(make_policy: Callable[..., Policy]) -> None:
    with pytest.raises(RuntimeError, match="without its image decoder"):
        make_policy().decode(torch.zeros(1, 4, 8, 8))


def test_a_model_that_is_not_there_is_named(make_policy: Callable[..., Policy], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"policy\.model=.*nothing is not a directory; give an existing one or a hub"):
        make_policy(tmp_path / "nothing")
