"""Kohya's files of SDXL and FLUX move the weights that their names mean; what diffusers does not convert is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from small_families import write_flux, write_sd3, write_sdxl
from torch import Tensor, nn

from raydense.config import Config, ConfigError
from raydense.diffusion.lora_files import LoraFile, read_lora
from raydense.families.known import family_of
from raydense.pipelines.pipeline_files import PipelineFiles, read_pipeline
from raydense.pipelines.published import PUBLISHED, SDXL
from raydense.planning.preflight import check_pipeline

Tensors = dict[str, Tensor]
WRITERS = {"sdxl": write_sdxl, "sd3": write_sd3, "flux": write_flux}
RANK, ALPHA = 6, 3.0
RESNET = {"conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1",
          "conv_shortcut": "skip_connection"}  # fmt: skip
OUTSIDE = {"conv_in": "input_blocks.0.0", "conv_out": "out.2",
           "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
           "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}  # fmt: skip
STREAM = {"attn_proj": "attn.{out}", "attn_qkv": "attn.{q} attn.{k} attn.{v}", "mlp_0": "{ff}.net.0.proj",
          "mlp_2": "{ff}.net.2", "mod_lin": "{norm}.linear"}  # fmt: skip
STREAMS = {
    "img": {"out": "to_out.0", "q": "to_q", "k": "to_k", "v": "to_v", "ff": "ff", "norm": "norm1"},
    "txt": {"out": "to_add_out", "q": "add_q_proj", "k": "add_k_proj", "v": "add_v_proj", "ff": "ff_context",
            "norm": "norm1_context"},
}  # fmt: skip


def sgm_name(name: str, depth: int) -> str:
    """A layer of diffusers' U-Net in the names of SDXL's authors. Args: depth: resnets of a block on the way down."""
    if name in OUTSIDE:
        return OUTSIDE[name]
    way, *parts = name.split(".")
    block = 0 if way == "mid_block" else int(parts.pop(0))
    kind, index, rest = parts[0], int(parts[1]), ".".join(parts[2:])
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * (depth + 1)}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{block * (depth + 1) + depth}.2.conv"
    inner, rest = (0, RESNET[rest]) if kind == "resnets" else (1, rest)
    if way == "mid_block":
        return f"middle_block.{1 if inner else 2 * index}.{rest}"
    place = block * (depth + 1) + index
    return (
        f"input_blocks.{place + 1}.{inner}.{rest}" if way == "down_blocks" else f"output_blocks.{place}.{inner}.{rest}"
    )


def flux_names(blocks: int = 1) -> dict[str, list[str]]:
    """Layers of diffusers' transformer, by the names of FLUX's authors; without the first of a single block."""
    names = {"img_in": ["x_embedder"], "txt_in": ["context_embedder"], "final_layer_linear": ["proj_out"]}
    for i in range(blocks):
        for stream, filled in STREAMS.items():
            for ending, pattern in STREAM.items():
                layers = pattern.format(**filled).split()
                names[f"double_blocks_{i}_{stream}_{ending}"] = [f"transformer_blocks.{i}.{layer}" for layer in layers]
        names[f"single_blocks_{i}_linear2"] = [f"single_transformer_blocks.{i}.proj_out"]
        names[f"single_blocks_{i}_modulation_lin"] = [f"single_transformer_blocks.{i}.norm.linear"]
    return names


def sdxl_names(unet: UNet2DConditionModel, depth: int) -> dict[str, list[str]]:
    layers = [name for name, module in unet.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return {sgm_name(name, depth).replace(".", "_"): [name] for name in layers}


def train(network: nn.Module, names: dict[str, list[str]]) -> tuple[Tensors, Tensors]:
    """A random LoRA under other names, and what it adds to the weight of each layer of the network."""
    draws, tensors, added = torch.Generator().manual_seed(0), {}, {}
    for name, layers in names.items():
        weights = [network.get_submodule(layer).weight for layer in layers]
        assert all(isinstance(weight, Tensor) for weight in weights)
        first, rows = weights[0], sum(len(weight) for weight in weights)  # type: ignore[arg-type]
        down = 0.3 * torch.randn((RANK, *first.shape[1:]), generator=draws)  # type: ignore[misc, union-attr]
        up = 0.3 * torch.randn((rows, RANK, *(1 for _ in first.shape[2:])), generator=draws)  # type: ignore[union-attr]
        whole = (up.flatten(1) @ down.flatten(1)) * ALPHA / RANK
        for layer, part in zip(layers, whole.split([len(w) for w in weights]), strict=True):  # type: ignore[arg-type]
            added[layer] = part.view(-1, *first.shape[1:])  # type: ignore[union-attr]
        tensors |= {f"lora_unet_{name}.lora_down.weight": down, f"lora_unet_{name}.lora_up.weight": up}
        tensors[f"lora_unet_{name}.alpha"] = torch.tensor(ALPHA)
    return tensors, added


def adds(file: LoraFile) -> Tensors:
    """What a LoRA that was read adds to each layer's weight."""
    found = {}
    for layer in file.ranks:
        a, b = (torch.from_numpy(file.tensors[f"{layer}.lora_{half}.default.weight"]) for half in "AB")
        found[layer] = (b.flatten(1) @ a.flatten(1) * file.alpha / file.rank).view(-1, *a.shape[1:])
    return found


@pytest.fixture
def model(make_once: Callable[..., Path]) -> Callable[[str], Path]:
    return lambda kind: make_once(f"kind-{kind}", WRITERS[kind])


def names_of(kind: str, network: Any) -> dict[str, list[str]]:
    return sdxl_names(network, depth=1) if kind == "sdxl" else flux_names()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["sdxl", "flux"])
def test_a_file_adds_what_it_was_trained_to_add_and_what_diffusers_makes_of_it(
    kind: str, model: Callable[[str], Path], tmp_path: Path
) -> None:
    files = read_pipeline(str(model(kind)), None, fetch=False)
    family = family_of(files, latent_size=8, guidance_scale=3.0, **({"text_tokens": 12} if kind == "flux" else {}))
    pipeline = DiffusionPipeline.from_pretrained(model(kind))
    network = getattr(pipeline, family.layout.denoiser)
    tensors, added = train(network, names_of(kind, network))
    save_file(tensors, tmp_path / "style.safetensors")
    file = read_lora(str(tmp_path / "style.safetensors"), pipeline=files)
    assert file.ranks == dict.fromkeys(added, RANK)
    for layer, found in adds(file).items():
        torch.testing.assert_close(found, added[layer], rtol=1e-5, atol=1e-6)

    if kind == "flux":  # of which diffusers leaves out what lies outside the blocks
        tensors = {name: tensor for name, tensor in tensors.items() if "_blocks_" in name}
        added = {layer: weight for layer, weight in added.items() if "_blocks." in layer}
        save_file(tensors, tmp_path / "style.safetensors")
    x, times, given = family.example_inputs(torch.float32, "cpu")
    inputs = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)), times + 500, given
    before = family.call(network, *inputs)
    pipeline.load_lora_weights(str(tmp_path / "style.safetensors"))
    theirs = family.call(network, *inputs)
    pipeline.unload_lora_weights()
    for layer, weight in added.items():
        network.get_submodule(layer).weight += weight
    torch.testing.assert_close(theirs, family.call(network, *inputs), rtol=1e-4, atol=1e-4)
    assert float((theirs - before).abs().max()) > 0.1


def test_every_layer_of_sdxl_has_its_name(tmp_path: Path) -> None:
    unet = PUBLISHED[SDXL][1]["unet"]
    with torch.device("meta"):
        names = sdxl_names(UNet2DConditionModel(**unet), depth=2)
    halves = {"lora_down": torch.ones(1, 2), "lora_up": torch.ones(2, 1)}
    tensors = {f"lora_unet_{name}.{half}.weight": tensor.clone() for name in names for half, tensor in halves.items()}
    save_file(tensors, tmp_path / "all.safetensors")
    files = PipelineFiles("", "StableDiffusionXLPipeline", {"unet": unet})
    ranks = read_lora(str(tmp_path / "all.safetensors"), pipeline=files).ranks
    assert sorted(ranks) == sorted(layer for layers in names.values() for layer in layers)
    assert len(ranks) > 700


def test_a_single_blocks_first_layer_is_four_of_diffusers_and_wants_their_own_width(tmp_path: Path) -> None:
    dims = [3072, 3072, 3072, 12288]
    flux, name = PipelineFiles("", "FluxPipeline"), "lora_unet_single_blocks_7_linear1"
    up = torch.arange(2.0 * sum(dims)).view(-1, 2) / 1000
    halves = {f"{name}.lora_down.weight": torch.tensor([[1.0, 2.0, 3.0]]).repeat(2, 1)}
    save_file(
        {**halves, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.0)}, tmp_path / "one.safetensors"
    )
    found = adds(read_lora(str(tmp_path / "one.safetensors"), pipeline=flux))
    block = "single_transformer_blocks.7"
    layers = [f"{block}.attn.to_q", f"{block}.attn.to_k", f"{block}.attn.to_v", f"{block}.proj_mlp"]
    whole = up @ halves[f"{name}.lora_down.weight"] / 2
    for layer, part in zip(layers, whole.split(dims), strict=True):
        torch.testing.assert_close(found.pop(layer), part)
    assert not found
    save_file({**halves, f"{name}.lora_up.weight": torch.ones(28, 2)}, tmp_path / "narrow.safetensors")
    refuse(
        tmp_path / "narrow.safetensors", flux, "narrow.safetensors is in Kohya's format, and diffusers does not conv"
    )


def test_what_modulates_the_output_is_swapped(tmp_path: Path) -> None:
    name = "lora_unet_final_layer_adaLN_modulation_1"
    down, up = torch.randn(2, 3), torch.randn(8, 2)
    save_file({f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}, tmp_path / "x.safetensors")
    found = adds(read_lora(str(tmp_path / "x.safetensors"), pipeline=PipelineFiles("", "FluxPipeline")))
    torch.testing.assert_close(
        found["norm_out.linear"], (up @ down).roll(4, 0)
    )  # shift and scale there, scale and shift


LAYERS = {
    "unet": "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
    "sgm": "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
    "flux": "lora_unet_double_blocks_0_img_attn_proj",
    "sd3": "lora_unet_joint_blocks_0_x_block_attn_qkv",
}
OTHERS = [
    ("flux", "StableDiffusionPipeline", "is a LoRA of FLUX in Kohya's format (lora_unet_double_blocks_0_img_attn_proj"),
    ("flux", "StableDiffusion3Pipeline", "is a LoRA of FLUX in Kohya's format"),
    ("sd3", "StableDiffusionXLPipeline", "is a LoRA of Stable Diffusion 3 in Kohya's format (lora_unet_joint_blocks_0"),
    ("sd3", "FluxPipeline", "), not of a FluxPipeline; give one of its own kind"),
    ("sd3", "StableDiffusion3Pipeline", "is in Kohya's format of Stable Diffusion 3 (lora_unet_joint_blocks_0_x_block"),
    ("unet", "FluxPipeline", "is a LoRA of a U-Net in Kohya's format"),
    ("sgm", "StableDiffusion3Pipeline", "is a LoRA of a U-Net in Kohya's format (lora_unet_input_blocks_4_1_transform"),
]


@pytest.mark.parametrize(("whose", "kind", "said"), OTHERS)
def test_a_file_of_another_kind_is_told_apart(whose: str, kind: str, said: str, tmp_path: Path) -> None:
    refuse(write(tmp_path, LAYERS[whose]), PipelineFiles("", kind), said)


ODD = [
    (["lora_unet_double_blocks_19_img_attn_proj"], "diffusers does not convert it (Incompatible keys detected:"),
    (["lora_unet_double_blocks_0_img_attn_projection"], "diffusers does not convert it (Incompatible keys detected:"),
    (
        ["lora_unet_input_blocks_4_1_proj_in", "lora_unet_down_blocks_0_attentions_0_proj_in"],
        "diffusers takes 1 of its 2 layers",
    ),
    (
        ["lora_unet_middle_block_3_proj_in"],
        "diffusers does not convert it (Invalid middle block id 3.); give it in diff",
    ),
    (["lora_unet_input_blocks_x_proj_in"], "diffusers does not convert it ("),
]


@pytest.mark.parametrize(("layers", "said"), ODD)
def test_what_diffusers_does_not_convert_is_refused_with_the_formats_name(
    layers: list[str], said: str, tmp_path: Path
) -> None:
    kind = "FluxPipeline" if "double" in layers[0] else "StableDiffusionXLPipeline"
    refuse(write(tmp_path, *layers), PipelineFiles("", kind), f"is in Kohya's format, and {said}")


@pytest.mark.parametrize(("kind", "encoder"), [("FluxPipeline", "te1"), ("FluxPipeline", "te3")])
def test_a_text_encoders_part_of_flux_is_left_out_on_demand(kind: str, encoder: str, tmp_path: Path) -> None:
    path, files = write(tmp_path, LAYERS["flux"], f"lora_{encoder}_encoder_block_0_layer_0_q"), PipelineFiles("", kind)
    refuse(path, files, "also adapts the text encoder, which stays as it is here (2 tensors: lora_te")
    left = read_lora(str(path), text_encoder="leave_out", pipeline=files)
    assert [*left.ranks] == ["transformer_blocks.0.attn.to_out.0"]


FOREIGN = [
    ("double_blocks.0.processor.qkv_lora1.down.weight", "is in XLabs' format of FLUX (double_blocks.0.processor.qkv"),
    ("diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight", "is in ComfyUI's format (diffusion_model.double_b"),
    ("lora_transformer_proj_out.lora_down.weight", "is of a format that names its layers lora_transformer_… (lora_tr"),
]


@pytest.mark.parametrize(("name", "said"), FOREIGN)
def test_another_format_is_refused_by_its_name(name: str, said: str, tmp_path: Path) -> None:
    save_file({name: torch.ones(2, 8)}, tmp_path / "x.safetensors")
    refuse(tmp_path / "x.safetensors", PipelineFiles("", "FluxPipeline"), said)


@pytest.mark.parametrize("kind", ["sdxl", "flux"])
def test_a_run_may_start_from_such_a_file(
    kind: str, model: Callable[[str], Path], small_config: Callable[..., Config], tmp_path: Path
) -> None:
    pipeline = DiffusionPipeline.from_pretrained(model(kind))
    network = pipeline.unet if kind == "sdxl" else pipeline.transformer
    taken = "_attn1_to_|_attn2_to_" if kind == "sdxl" else "_attn_"
    names = {name: layers for name, layers in names_of(kind, network).items() if re.search(taken, name)}
    save_file(train(network, names)[0], tmp_path / "style.safetensors")
    policy = {"model": str(model(kind)), "init_lora": str(tmp_path / "style.safetensors"), "lora_rank": RANK}
    if kind == "flux":
        policy |= {"t5_tokens": 12, "lora_targets": [layer for layers in names.values() for layer in layers]}
    check_pipeline(small_config(policy=policy, sampler={"latent_size": 8}))


def write(directory: Path, *layers: str) -> Path:
    halves = {"lora_down": torch.ones(2, 6), "lora_up": torch.ones(6, 2)}
    path = directory / "x.safetensors"
    save_file({f"{layer}.{half}.weight": tensor.clone() for layer in layers for half, tensor in halves.items()}, path)
    return path


def refuse(path: Path, pipeline: PipelineFiles, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_lora(str(path), pipeline=pipeline)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
