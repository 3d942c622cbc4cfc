"""Kohya's files predict here what they predict elsewhere; what is no plain LoRA of the U-Net is refused by its name."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn

from raydense.config import ConfigError
from raydense.diffusion.lora_files import load_lora, read_lora
from raydense.diffusion.lora_kohya import from_kohya
from raydense.pipelines.pipeline_files import PipelineFiles

Tensors = dict[str, Tensor]
LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
PLAIN = {
    f"{LAYER}.lora_down.weight": torch.ones(2, 8),
    f"{LAYER}.lora_up.weight": torch.ones(8, 2),
    f"{LAYER}.alpha": torch.tensor(1.0),
}


def write(path: Path, tensors: Tensors) -> str:
    about = {"ss_network_module": "networks.lora", "ss_network_dim": "4", "ss_base_model_version": "sd_v1"}
    save_file(tensors, path, metadata=about)
    return str(path)


# -- Kohya's ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "plain_diffusers_reads_it"),
    [
        ({"dim": 4, "alpha": 4.0, "conv_dim": 4, "conv_alpha": 4.0}, True),
        ({"dim": 4, "alpha": 1.0, "conv_dim": 4, "conv_alpha": 1.0}, True),
        ({"dim": 4, "alpha": 2.0, "conv_dim": 2, "conv_alpha": 2.0}, True),  # ranks differ
        ({"dim": 2, "alpha": 2.0, "conv_dim": 3, "conv_alpha": 1.0}, False),  # 0.42 drops alphas of attention layers
    ],
)
@torch.no_grad()
def test_a_kohya_file_predicts_what_sd_scripts_and_diffusers_make_of_it(
    sizes: dict[str, Any],
    plain_diffusers_reads_it: bool,
    plain_pipeline: Callable[[], StableDiffusionPipeline],
    predict_from: Callable[[str], tuple[Tensor, tuple[Tensor, ...]]],
    train_kohya: Callable[..., Tensors],
    tmp_path: Path,
) -> None:
    pipeline, merged = plain_pipeline(), plain_pipeline().unet
    location = write(tmp_path / "style.safetensors", train_kohya(merged, **sizes))
    file = read_lora(location)
    assert (file.rank, file.alpha) == (max(sizes["dim"], sizes["conv_dim"]),) * 2
    found, inputs = predict_from(location)
    torch.testing.assert_close(found, merged(*inputs).sample, rtol=1e-5, atol=1e-5)
    assert float((found - pipeline.unet(*inputs).sample).abs().max()) > 0.1
    if plain_diffusers_reads_it:
        pipeline.load_lora_weights(location)
        torch.testing.assert_close(pipeline.unet(*inputs).sample, found, rtol=1e-5, atol=1e-5)


LIKE_1 = {"cross_attention_dim": 768, "attention_head_dim": 8}
LIKE_2 = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}


@pytest.mark.parametrize("config", [LIKE_1, LIKE_2], ids=["1.5", "2.1"])
def test_every_layer_of_a_full_size_unet_has_its_name_and_none_is_asked_of_the_network(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    layers = [name for name, module in unet.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    tensors = {}
    for name in layers:
        prefix = f"lora_unet_{name.replace('.', '_')}"
        tensors |= {f"{prefix}.lora_down.weight": torch.ones(1, 2), f"{prefix}.lora_up.weight": torch.ones(2, 1)}
    location = write(tmp_path / "all.safetensors", tensors)
    monkeypatch.setattr(socket, "socket", None)
    assert sorted(read_lora(location).ranks) == sorted(layers)
    assert len(layers) > 250


def test_alpha_is_folded_in_float32_and_means_the_rank_where_it_is_absent_or_zero() -> None:
    up, down = torch.full((8, 3), 0.1, dtype=torch.float16), torch.ones(3, 8, dtype=torch.float16)
    for alpha, scale in ((torch.tensor(1), 1 / 3), (torch.tensor(0.0), 1.0), (None, 1.0)):
        stated = {} if alpha is None else {f"{LAYER}.alpha": alpha}
        tensors = {f"{LAYER}.lora_down.weight": down, f"{LAYER}.lora_up.weight": up, **stated}
        folded = from_kohya(tensors, "x", PipelineFiles(""))
        (found,) = [tensor for name, tensor in folded.items() if ".up." in name]
        assert torch.equal(found, up.float() * scale)
        assert len(folded) == 2


def test_layers_of_a_smaller_rank_begin_as_a_new_lora_does(
    plain_pipeline: Callable[[], StableDiffusionPipeline], train_kohya: Callable[..., Tensors], tmp_path: Path
) -> None:
    tensors = train_kohya(plain_pipeline().unet, dim=4, alpha=2.0, conv_dim=1, conv_alpha=1.0)
    file = read_lora(write(tmp_path / "one.safetensors", tensors))
    shapes = {name: array.shape for name, array in file.tensors.items()}

    def load(seed: int) -> Any:
        return load_lora(str(tmp_path / "one.safetensors"), shapes, rank=4, alpha=4, seed=seed)

    small = [module for module, rank in file.ranks.items() if rank == 1]
    assert small
    a, b = (load(3).tensors[f"{small[0]}.lora_{half}.default.weight"] for half in "AB")
    prefix = f"lora_unet_{small[0].replace('.', '_')}"
    assert np.array_equal(a[:1], tensors[f"{prefix}.lora_down.weight"].numpy())
    assert 0.1 < a[1:].std() < 0.5  # 1 / 4, as in METHOD §6
    assert b[:, :1].any() and not b[:, 1:].any()  # so that it predicts what the file predicts
    assert load(3).checksum == load(3).checksum != load(4).checksum


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {f"{LAYER}.lora_up.weight": None},
            f"of its layers are not the two factors of a LoRA: {LAYER} with alpha, lora_d",
        ),
        ({f"{LAYER}.scalar": torch.ones(1)}, f"{LAYER} with alpha, lora_down.weight, lora_up.weight, scalar"),
        ({f"{LAYER}.lora_down.weight": torch.ones(2)}, "1 tensors do not have their layer's rank: "),
        ({f"{LAYER}.lora_down.weight": torch.tensor(1.0)}, "1 tensors do not have their layer's rank: "),
        ({f"{LAYER}.lora_down.weight": torch.ones(0, 8)}, "1 tensors do not have their layer's rank: "),
        ({"emb_params": torch.ones(2, 8)}, "1 of its layers are not the two factors of a LoRA: emb_params"),
        ({f"{LAYER}.alpha": torch.tensor(float("nan"))}, f"has NaN or infinity in {LAYER}.alpha"),
        ({f"{LAYER}.alpha": torch.ones(2)}, f"{LAYER}.alpha [2] is not one number"),
        ({f"{LAYER}.lora_up.weight": torch.ones(8, 3)}, "1 tensors do not have their layer's rank: "),
    ],
)
def test_a_kohya_file_that_is_not_whole(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in {**PLAIN, **changed}.items() if tensor is not None}
    refuse(write(tmp_path / "x.safetensors", tensors), said)


# -- a text encoder's part ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        f"{TEXT}.lora_down.weight",
        TEXT.replace("lora_te_", "lora_te1_") + ".alpha",
        "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.down.weight",
        "base_model.model.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight",
    ],
)
def test_a_text_encoders_part_is_refused_by_name_or_left_out_on_demand(name: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    location = write(tmp_path / "both.safetensors", {**PLAIN, name: torch.zeros(2, 16)})
    refuse(location, f"also adapts the text encoder, which stays as it is here (1 tensors: {name})")
    refuse(location, "policy.text_encoder_lora=leave_out takes the U-Net's part alone")
    left = read_lora(location, text_encoder="leave_out")
    alone = read_lora(write(tmp_path / "alone.safetensors", PLAIN))
    assert left.tensors.keys() == alone.tensors.keys() and left.ranks == alone.ranks
    only = write(tmp_path / "only.safetensors", {name: torch.zeros(2, 16)})
    with pytest.raises(ConfigError, match="adapts the text encoder alone; give a LoRA of the U-Net"):
        read_lora(only, text_encoder="leave_out")


SECOND = [
    "lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha",
    "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight",
]


@pytest.mark.parametrize("name", SECOND)
def test_a_second_text_encoders_part_belongs_to_kinds_that_have_one(name: str, tmp_path: Path) -> None:
    location = write(tmp_path / "both.safetensors", {**PLAIN, name: torch.zeros(2, 16)})
    refuse(location, f"adapts a text_encoder_2 ({name}), which this kind of model has not; give a LoRA of its own")
    for kind, called in (("StableDiffusionXLPipeline", "U-Net"), ("FluxPipeline", "transformer")):
        with pytest.raises(ConfigError, match=f"also adapts the text encoder.*leave_out takes the {called}'s part alo"):
            read_lora(location, pipeline=PipelineFiles("", kind))
    left = read_lora(location, text_encoder="leave_out", pipeline=PipelineFiles("", "StableDiffusionXLPipeline"))
    assert left.tensors.keys() == read_lora(write(tmp_path / "alone.safetensors", PLAIN)).tensors.keys()


# -- other formats ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "what"),
    [
        (f"{LAYER}.hada_w1_a", "a LoHa"),
        ("base_model.model.down_blocks.0.attn1.to_q.hada_w1_a", "a LoHa"),
        (f"{LAYER}.lokr_w2", "a LoKr"),
        ("unet.down_blocks.0.attentions.0.proj_in.lokr_w1_a", "a LoKr"),
        (f"{LAYER}.dora_scale", "a DoRA"),
        ("unet.down_blocks.0.attentions.0.proj_in.lora_magnitude_vector", "a DoRA"),
        ("base_model.model.down_blocks.0.attn1.to_q.lora_magnitude_vector.weight", "a DoRA"),
        ("lora_unet_down_blocks_0_resnets_0_conv1.lora_mid.weight", "a LoCon with a Tucker decomposition"),
        (f"{LAYER}.oft_blocks", "an OFT"),
        (f"{LAYER}.on_input", "an IA3"),
        (f"{LAYER}.a1.weight", "a GLoRA"),
        (f"{LAYER}.diff", "a LyCORIS file with whole differences of weights"),
    ],
)
def test_what_cannot_be_taken_over_is_one_line_with_its_format(name: str, what: str, tmp_path: Path) -> None:
    location = write(tmp_path / "x.safetensors", {**PLAIN, name: torch.ones(2, 8)})
    refuse(location, f"x.safetensors is {what} ({name}), which cannot be taken over; give a plain LoRA")


def refuse(location: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_lora(location)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_a_file_without_tensors(tmp_path: Path) -> None:
    refuse(write(tmp_path / "none.safetensors", {}), "none.safetensors: holds no tensors at all")
    torch.save({}, tmp_path / "none.bin")
    refuse(str(tmp_path / "none.bin"), "none.bin: holds no tensors at all")
    refuse(write(tmp_path / "x.safetensors", {"a.weight": torch.ones(2, 2)}), "holds no LoRA; its tensors: a.weight")
