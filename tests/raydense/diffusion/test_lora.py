"""The LoRA file: any diffusers pipeline loads it and then predicts what our policy predicts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from safetensors import safe_open

from raydense.core.types import PolicyWeights
from raydense.diffusion.lora import save_diffusers_lora
from raydense.diffusion.policy import Policy
from raydense.families.conditioning import stacked

ORIGIN = {"base_model": "owner/name@1", "rank": 2, "alpha": 2.0, "reward": {"kind": "clip"}, "config_sha256": "0f"}


LINEAR = ("to_q", "to_k", "to_v", "to_out.0")
CONVOLUTIONS = ("conv_in", "conv1", "conv", "conv_shortcut", "proj_in")


def lora(rank: int, alpha: float, targets: Sequence[str] = LINEAR) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets))


@pytest.mark.parametrize(
    ("rank", "alpha", "targets"),
    [
        (2, 2.0, LINEAR),
        (2, 8.0, LINEAR),
        (4, 1.0, LINEAR),
        (2, 8.0, CONVOLUTIONS),
        (3, 6.0, (*LINEAR, *CONVOLUTIONS, "ff.net.2", "time_emb_proj")),
    ],
)
@torch.no_grad()
def test_a_plain_pipeline_with_the_file_predicts_what_the_policy_predicts(
    rank: int,
    alpha: float,
    targets: Sequence[str],
    plain_pipeline: Callable[[], StableDiffusionPipeline],
    make_policy: Callable[..., Policy],
    perturbed: Callable[..., Any],
    tmp_path: Path,
) -> None:
    policy = make_policy(rank=rank, alpha=alpha, targets=targets, guidance_scale=1.0)
    policy.bind(perturbed(policy))
    file = save_diffusers_lora(tmp_path, policy.weights(), lora(rank, alpha, targets), ORIGIN)

    pipeline = plain_pipeline()
    x = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    embeds = stacked([policy.encode("a cat"), policy.encode("a dog")])
    t = torch.tensor([0, 2])
    timesteps = policy.schedule.timesteps[t]
    base = pipeline.unet(x, timesteps, embeds["prompt_embeds"]).sample
    pipeline.load_lora_weights(file.parent)
    tuned = pipeline.unet(x, timesteps, embeds["prompt_embeds"]).sample

    torch.testing.assert_close(tuned, policy.predict(x, t, embeds), rtol=1e-5, atol=1e-5)
    assert float((tuned - base).abs().max()) > 1e-2
    config = pipeline.unet.peft_config["default_0"]
    assert (config.r, config.lora_alpha) == (rank, alpha)  # and nothing of ORIGIN came along


def test_equal_weights_give_equal_bytes(
    make_policy: Callable[..., Policy], perturbed: Callable[..., Any], tmp_path: Path
) -> None:
    weights = perturbed(make_policy())
    backwards = PolicyWeights.of(weights.version, dict(reversed(weights.tensors.items())))
    by_columns = PolicyWeights.of(weights.version, {n: np.asfortranarray(a) for n, a in weights.tensors.items()})
    files = [
        save_diffusers_lora(tmp_path / str(i), each, lora(2, 2.0))
        for i, each in enumerate((weights, weights, backwards, by_columns))
    ]
    assert len({file.read_bytes() for file in files}) == 1
    other = save_diffusers_lora(tmp_path / "other", perturbed(make_policy(), seed=1), lora(2, 2.0))
    assert other.read_bytes() != files[0].read_bytes()


def test_the_file_says_what_it_is_of(
    make_policy: Callable[..., Policy], perturbed: Callable[..., Any], tmp_path: Path
) -> None:
    weights = perturbed(make_policy())
    files = [
        save_diffusers_lora(tmp_path / str(i), weights, lora(2, 2.0), dict(items))
        for i, items in enumerate((ORIGIN.items(), reversed(ORIGIN.items())))
    ]
    with safe_open(files[0], framework="pt") as file:
        metadata = file.metadata()
    assert list(metadata) == ["lora_adapter_metadata"]  # several have no fixed order in the file
    described = json.loads(metadata["lora_adapter_metadata"])
    assert {key: described[key] for key in ORIGIN} == ORIGIN
    assert files[0].read_bytes() == files[1].read_bytes()


def test_saving_again_replaces_the_file(
    make_policy: Callable[..., Policy], perturbed: Callable[..., Any], tmp_path: Path
) -> None:
    first, second = perturbed(make_policy(), seed=1), perturbed(make_policy(), seed=2)
    save_diffusers_lora(tmp_path / "a", first, lora(2, 2.0))
    replaced = save_diffusers_lora(tmp_path / "a", second, lora(2, 2.0))
    assert replaced.read_bytes() == save_diffusers_lora(tmp_path / "b", second, lora(2, 2.0)).read_bytes()


def test_tensors_of_a_channels_last_policy_are_as_files_hold_them(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy(channels_last=True, targets=CONVOLUTIONS)
    assert all(parameter.is_contiguous() for parameter in policy.parameters())
    assert not policy.network.conv_in.base_layer.weight.is_contiguous()
