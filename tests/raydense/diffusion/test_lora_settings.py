"""What metadata and `adapter_config.json` say of a LoRA is followed, or refused in one line with file and key."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor

from raydense.config import ConfigError
from raydense.diffusion.lora import FILE_NAME, KEY
from raydense.diffusion.lora_files import read_lora
from raydense.diffusion.lora_formats import read_adapter

Predict = Callable[[str], tuple[Tensor, tuple[Tensor, ...]]]
WRONG = {
    "[1, 2]": " holds [1, 2] where an object of settings belongs",
    '"text"': " holds 'text' where an object of settings belongs",
    "{": " is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))",
    '{"lora_alpha": "8"}': "lora_alpha='8' should be a valid number",
    '{"lora_alpha": true}': "lora_alpha=True should be a valid number",
    '{"lora_alpha": NaN}': "lora_alpha=nan should be a finite number",
    '{"lora_alpha": {"a": 1}}': "lora_alpha={'a': 1} should be a valid number",
    '{"alpha_pattern": [4]}': "alpha_pattern=[4] should be a valid dictionary",
    '{"alpha_pattern": {"to_q": "4"}}': "alpha_pattern.to_q='4' should be a valid number",
}
REFUSED = {
    '{"use_dora": true}': "use_dora",
    '{"init_lora_weights": "pissa_niter_4"}': "init_lora_weights='pissa_niter_4'",
    '{"init_lora_weights": "olora"}': "init_lora_weights='olora'",
    '{"peft_type": "LOHA"}': "peft_type=LOHA",
}
PROJECTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
FACTORS = {f"{PROJECTION}.lora_A.weight": torch.ones(2, 8), f"{PROJECTION}.lora_B.weight": torch.ones(8, 2)}


def refuse(location: Path, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_lora(str(location))
    assert str(caught.value).startswith(f"policy.init_lora={location}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def write_peft(directory: Path, adapter_config: str) -> Path:
    (directory / "adapter_config.json").write_text(adapter_config)
    path = directory / "adapter_model.safetensors"
    save_file({f"base_model.model.{name}": tensor for name, tensor in FACTORS.items()}, path)
    return path


@pytest.mark.parametrize("text", WRONG)
def test_settings_of_the_wrong_shape_name_file_and_key(text: str, tmp_path: Path) -> None:
    location = write_peft(tmp_path, text)
    refuse(location, "adapter_config.json beside it")
    refuse(location, WRONG[text])
    theirs = re.sub(r'{"(?=[a-z])', '{"unet.', text, count=1)
    location = tmp_path / FILE_NAME
    save_file({f"unet.{name}": tensor for name, tensor in FACTORS.items()}, location, metadata={KEY: theirs})
    refuse(location, f"its metadata {KEY}")
    refuse(location, f"unet.{WRONG[text]}" if "unet" in theirs else WRONG[text])


@pytest.mark.parametrize("text", REFUSED)
def test_settings_that_change_what_tensors_mean_are_refused_by_name(text: str, tmp_path: Path) -> None:
    refuse(write_peft(tmp_path, text), f": its {REFUSED[text]} cannot be taken over; give a plain LoRA")


PATTERNS = {
    "ranks": {"rank_pattern": {"to_q": 3, "conv1": 1}},
    "alphas": {"alpha_pattern": {"to_q": 8}},
    "both": {"rank_pattern": {"to_q": 3, "^conv_in": 1}, "alpha_pattern": {"to_q": 8, "^conv_in": 5}},
}


@pytest.mark.parametrize("name", PATTERNS)
@torch.no_grad()
def test_peft_adapters_whose_layers_differ_predict_what_peft_predicts(
    name: str, plain_pipeline: Callable[[], StableDiffusionPipeline], predict_from: Predict, tmp_path: Path
) -> None:
    targets = ["to_q", "to_v", "conv1", "conv_in"]
    config = LoraConfig(r=2, lora_alpha=4, target_modules=targets, init_lora_weights=False, **PATTERNS[name])
    model = get_peft_model(plain_pipeline().unet, config)
    model.save_pretrained(tmp_path)
    found, inputs = predict_from(str(tmp_path))
    torch.testing.assert_close(found, model(*inputs).sample, rtol=1e-5, atol=1e-5)


def test_a_pattern_may_name_the_unet_that_peft_wrapped() -> None:
    adapter = read_adapter(json.dumps({"alpha_pattern": {"^unet.conv_in": 3}, "lora_alpha": 2}), "x", "y")
    assert [adapter.alpha(module, 4) for module in ("conv_in", "mid.conv_in", "conv_out")] == [3, 2, 2]
    assert read_adapter("{}", "x", "y").alpha("conv_in", 4) == 4


@torch.no_grad()
def test_a_diffusers_file_of_several_ranks_predicts_what_diffusers_predicts(
    plain_pipeline: Callable[[], StableDiffusionPipeline], predict_from: Predict, tmp_path: Path
) -> None:
    unet, targets = plain_pipeline().unet, ["to_q", "to_v", "conv1"]
    unet.add_adapter(LoraConfig(r=3, target_modules=targets, rank_pattern={"conv1": 1}, init_lora_weights=False))
    tensors = {
        f"unet.{name.replace('.default', '')}": tensor.contiguous()
        for name, tensor in unet.state_dict().items()
        if ".lora_" in name
    }
    save_file(tensors, tmp_path / FILE_NAME)
    pipeline = plain_pipeline()
    pipeline.load_lora_weights(tmp_path)
    found, inputs = predict_from(str(tmp_path))
    torch.testing.assert_close(found, pipeline.unet(*inputs).sample, rtol=1e-5, atol=1e-5)
