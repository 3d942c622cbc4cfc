"""LoRAs of every kind of layer, rank and origin in one policy: each predicts there what it predicts alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from raydense.cli import app
from raydense.config import Config, ConfigError
from raydense.diffusion.lora import FILE_NAME, save_diffusers_lora
from raydense.diffusion.policy import Policy
from raydense.evaluation.candidates import find_sources, fit_models, shared_config
from raydense.families.conditioning import stacked
from raydense.planning.preflight import check_pipeline
from raydense.wiring.policies import build_policy

LEAVE_OUT = ("--set", "policy.text_encoder_lora=leave_out")
LINEAR, CONVOLUTIONS = ("to_q", "to_out.0"), ("conv1", "proj_in", "conv_in")
KOHYA_TARGETS = [
    *("conv", "conv1", "conv2", "conv_shortcut", "net.2", "proj", "proj_in", "proj_out"),
    *("time_emb_proj", "to_k", "to_out.0", "to_q", "to_v"),
]


def write_kohya(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, path, metadata={"ss_network_module": "networks.lora"})
    return path


@pytest.fixture
def files(
    pipeline_dir: Path,
    make_policy: Callable[..., Policy],
    perturbed: Callable[..., Any],
    train_kohya: Callable[..., dict[str, Tensor]],
    tmp_path: Path,
) -> dict[Path, Any]:
    """LoRAs of three origins, and the U-Net that predicts what each predicts alone."""
    alone: dict[Path, Any] = {}
    for name, targets, rank, alpha in (("linear", LINEAR, 2, 2.0), ("convolutions", CONVOLUTIONS, 3, 6.0)):
        policy = make_policy(rank=rank, alpha=alpha, targets=targets)
        policy.bind(perturbed(policy))
        lora = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets))
        save_diffusers_lora(tmp_path / name, policy.weights(), lora)
        alone[tmp_path / name] = policy.network
    merged = UNet2DConditionModel.from_pretrained(pipeline_dir, subfolder="unet")
    tensors = train_kohya(merged, dim=4, alpha=1.0, conv_dim=1, conv_alpha=2.0)
    alone[write_kohya(tmp_path / "kohya.safetensors", tensors)] = merged
    return alone


@torch.no_grad()
def test_every_kind_of_lora_predicts_beside_others_what_it_predicts_alone(
    files: dict[Path, Any], small_config: Callable[..., Config]
) -> None:
    config = small_config(sampler={"guidance_scale": 1.0})
    joint, models = fit_models(config, check_pipeline(config), find_sources(list(map(str, files))), "LoRA")
    assert [model.name for model in models] == ["base", "linear", "convolutions", "kohya"]
    assert (joint.policy.lora_rank, joint.policy.lora_alpha) == (4, 4.0)
    policy = build_policy(joint, dtype="float32", device=torch.device("cpu"), with_decoder=False)
    x, t = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2])
    embeds = stacked([policy.encode("a cat"), policy.encode("a dog")])
    policy.bind(models[0].weights)
    base = policy.predict(x, t, embeds)
    with policy.reference():
        assert torch.equal(policy.predict(x, t, embeds), base)
    for model, unet in zip(models[1:], files.values(), strict=True):
        policy.bind(model.weights)
        expected = unet(x, policy.schedule.timesteps[t], embeds["prompt_embeds"]).sample
        torch.testing.assert_close(policy.predict(x, t, embeds), expected, rtol=1e-5, atol=1e-5)
        assert float((expected - base).abs().max()) > 1e-2


def test_a_file_of_another_unet_is_one_short_line(
    train_kohya: Callable[..., dict[str, Tensor]],
    pipeline_dir: Path,
    small_config: Callable[..., Config],
    tmp_path: Path,
) -> None:
    unet = UNet2DConditionModel.from_pretrained(pipeline_dir, subfolder="unet")
    tensors = train_kohya(unet, dim=1, alpha=1.0, conv_dim=1, conv_alpha=1.0)
    config = small_config()

    def refused(changed: dict[str, Tensor], said: str) -> None:
        path = write_kohya(tmp_path / "other.safetensors", changed)
        with pytest.raises(ConfigError) as caught:
            fit_models(config, check_pipeline(config), find_sources([str(path)]), "LoRA")
        assert said in str(caught.value)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 800

    deeper = {name.replace("blocks_0", "blocks_7"): tensor for name, tensor in tensors.items()}
    refused(deeper, f"{sum('blocks_7' in n and 'alpha' not in n for n in deeper)} surplus: down_blocks.7")
    nothing = {name.replace("blocks_", "blocks_7"): tensor for name, tensor in tensors.items() if "mid" not in name}
    refused(nothing, f"{len(nothing) * 2 // 3} surplus: down_blocks.70")
    normalised = {name.replace("resnets_0_conv1", "resnets_0_norm1"): tensor for name, tensor in tensors.items()}
    refused(normalised, "surplus: down_blocks.0.resnets.0.norm1.lora_A.default.weight")
    name = "lora_unet_mid_block_resnets_0_conv1.lora_down.weight"
    refused({**tensors, name: torch.zeros(1, 16, 1, 1)}, "1 misshapen: mid_block.resnets.0.conv1.lora_A.default.weight")


def test_what_a_run_left_out_of_its_start_is_not_left_out_of_what_it_is_compared_with(
    small_config: Callable[..., Config],
) -> None:
    config = small_config(policy={"init_lora": "start", "text_encoder_lora": "leave_out"})
    judged = shared_config([], config)
    assert (judged.policy.init_lora, judged.policy.text_encoder_lora) == (None, "refuse")


@pytest.fixture
def start(pipeline_dir: Path, train_kohya: Callable[..., dict[str, Tensor]], tmp_path: Path) -> Path:
    """A Kohya file with convolutions of a smaller rank, and with a text encoder's part."""
    unet = UNet2DConditionModel.from_pretrained(pipeline_dir, subfolder="unet")
    tensors = train_kohya(unet, dim=2, alpha=1.0, conv_dim=1, conv_alpha=1.0)
    text = {"lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": torch.tensor(1.0)}
    return write_kohya(tmp_path / "start.safetensors", {**tensors, **text})


def test_what_a_run_needs_to_start_from_a_kohya_file_is_said_line_by_line(
    start: Path, small_config: Callable[..., Config]
) -> None:
    settings: dict[str, Any] = {"init_lora": str(start)}
    for said, answer in (
        (r"; policy\.text_encoder_lora=(\w+) takes the U-Net's part alone$", lambda text: {"text_encoder_lora": text}),
        (r"; for what it adapts, set policy\.lora_targets=\[(.*)\]$", lambda text: {"lora_targets": text.split(", ")}),
    ):
        with pytest.raises(ConfigError, match=said) as caught:
            check_pipeline(small_config(policy=settings))
        (text,) = re.findall(said, str(caught.value))
        settings |= answer(text)
    check_pipeline(small_config(policy=settings))
    assert settings["lora_targets"] == KOHYA_TARGETS


@pytest.mark.slow
def test_a_run_on_convolutions_from_a_kohya_file_is_resumed_judged_drawn_and_exported(
    start: Path, small_values: dict[str, Any], tmp_path: Path
) -> None:
    """plain: `test_every_kind_of_lora_predicts_beside_others_what_it_predicts_alone`, and
    `test_what_a_run_needs_to_start_from_a_kohya_file_is_said_line_by_line`.
    """
    policy = {"init_lora": str(start), "text_encoder_lora": "leave_out", "lora_targets": KOHYA_TARGETS}
    stage = {"count": 2, "groups": 4, "steps": 1}
    values = {**small_values, "stage": stage, "policy": {**small_values["policy"], **policy}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    run, cut, out = (tmp_path / name for name in ("run", "cut", "out"))
    for arguments in (
        ("train", "--local", tmp_path / "config.yaml", "--out", run),
        ("train", "--local", tmp_path / "config.yaml", "--out", cut, "--set", "stage.count=1"),
        ("train", "--local", "--resume", cut, "--set", "stage.count=2"),
        (
            "evaluate",
            "--local",
            run,
            start,
            "--images",
            "1",
            "--set",
            "policy.text_encoder_lora=leave_out",
            "--out",
            out,
        ),
        ("sample", "a cat", "--lora", run, "--base", "--images", "1", "--out", tmp_path / "a.png"),
        ("export", run, "--to", tmp_path / "exported"),
    ):
        result = CliRunner().invoke(app, list(map(str, arguments)))
        assert result.exit_code == 0, result.output
    assert (cut / "lora" / FILE_NAME).read_bytes() == (run / "lora" / FILE_NAME).read_bytes()
    scores = json.loads((out / "evaluation.json").read_text())["scores"]
    assert len({str(scores[model]) for model in ("base", "run", "start")}) == 3
    assert "conv1" in (tmp_path / "exported" / "README.md").read_text()
