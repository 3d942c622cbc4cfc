"""A network has every tensor of its file, and every one of them is a number; else one line says what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPProcessor, CLIPTextModel, CLIPTokenizer

from raydense.config import ConfigError
from raydense.pipelines.model_folder import ModelFolder
from raydense.pipelines.networks import check_network, load_network, load_part

Tensors = dict[str, torch.Tensor]
NETWORKS = {  # class, its file, a tensor of it
    "unet": (UNet2DConditionModel, "unet/diffusion_pytorch_model.safetensors", "conv_out.weight"),
    "vae": (AutoencoderKL, "vae/diffusion_pytorch_model.safetensors", "decoder.conv_in.weight"),
    "text_encoder": (CLIPTextModel, "text_encoder/model.safetensors", "final_layer_norm.weight"),
    "scorer": (CLIPModel, "scorer/model.safetensors", "visual_projection.weight"),
}
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}  # of a VAE's attention


@pytest.fixture
def models(pipeline_dir: Path, scorer_dir: Path, tmp_path: Path) -> Path:
    """A pipeline and a CLIP scorer, to be spoiled."""
    shutil.copytree(pipeline_dir, tmp_path, dirs_exist_ok=True)
    shutil.copytree(scorer_dir, tmp_path / "scorer")
    return tmp_path


def folder_of(models: Path, network: str) -> ModelFolder:
    if network == "scorer":
        return ModelFolder("scorer s: model", str(models / "scorer"))
    return ModelFolder("policy.model", str(models), None, network)


def change(models: Path, network: str, edit: Callable[[Tensors], Tensors]) -> None:
    file = models / NETWORKS[network][1]
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    save_file({name: tensor.contiguous() for name, tensor in edit(tensors).items()}, file)


def load(models: Path, network: str, dtype: torch.dtype = torch.float32, variant: str | None = None) -> Any:
    return load_network(NETWORKS[network][0], folder_of(models, network), dtype=dtype, variant=variant)


def refuse(models: Path, network: str, *said: str) -> None:
    """Before anything is loaded, and again where it is."""
    cls, folder = NETWORKS[network][0], folder_of(models, network)
    for attempt in (lambda: check_network(cls, folder), lambda: load(models, network)):
        with pytest.raises(ConfigError) as caught:
            attempt()
        assert all(part in str(caught.value) for part in (f"{folder.setting}={folder.location}: ", *said))
        assert "\n" not in str(caught.value)


# -- strictness ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("damage", ["missing", "surplus", "misshapen", "prefixed"])
def test_tensors_that_do_not_fit_are_named(models: Path, network: str, damage: str) -> None:
    cls, _, name = NETWORKS[network]
    stored = next(key for key in load_file(models / NETWORKS[network][1]) if key.endswith(name))
    shape = list(load_file(models / NETWORKS[network][1])[stored].shape)
    edits: dict[str, tuple[Callable[[Tensors], Tensors], tuple[str, ...]]] = {
        "missing": (lambda t: {k: v for k, v in t.items() if k != stored}, ("; 1 missing: ", name)),
        "surplus": (lambda t: {**t, "ema.decay": torch.ones(1)}, ("; 1 surplus: ema.decay",)),
        "misshapen": (lambda t: {**t, stored: torch.ones(3, 5)}, ("; 1 misshapen: ", f"{name} [3, 5], not {shape}")),
        "prefixed": (lambda t: {f"module.{k}": v for k, v in t.items()}, (" missing: ", " surplus: module.")),
    }
    edit, said = edits[damage]
    change(models, network, edit)
    refuse(models, network, f".safetensors is not this {cls.__name__}; ", *said)


@pytest.mark.parametrize(("key", "value"), [("dtype", True), ("initializer_factor", None)])
def test_a_configuration_that_builds_but_does_not_load_is_a_line(models: Path, key: str, value: Any) -> None:
    file = models / "text_encoder" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    refuse(models, "text_encoder", "cannot be loaded (")


def test_names_that_the_libraries_translate_are_no_fault(models: Path) -> None:
    before = {network: load(models, network).state_dict() for network in ("vae", "text_encoder")}

    def old_attention(tensors: Tensors) -> Tensors:
        renamed = {}
        for name, tensor in tensors.items():
            for new, old in OLD_NAMES.items():
                name = name.replace(f".attentions.0.{new}.", f".attentions.0.{old}.")
            renamed[name] = tensor
        assert sum(name not in tensors for name in renamed) == 16  # the encoder's and the decoder's
        return renamed

    change(models, "vae", old_attention)
    change(models, "text_encoder", lambda t: {f"text_model.{k.removeprefix('text_model.')}": v for k, v in t.items()})
    file = models / "vae" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "_diffusers_version": "0.6.0"}))
    for network, expected in before.items():
        assert check_network(NETWORKS[network][0], folder_of(models, network)) is not None
        found = load(models, network).state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("network", ["text_encoder", "scorer"])
def test_position_ids_are_harmless(models: Path, network: str) -> None:
    change(models, network, lambda t: {**t, "text_model.embeddings.position_ids": torch.arange(12)[None]})
    assert check_network(NETWORKS[network][0], folder_of(models, network)) is not None
    load(models, network)


def test_shards_are_read_together_and_one_that_lacks_a_tensor_is_named(models: Path) -> None:
    expected = load(models, "unet")
    shutil.rmtree(models / "unet")
    expected.save_pretrained(models / "unet", max_shard_size="50KB")
    assert len(list((models / "unet").glob("*.safetensors"))) > 2
    assert torch.equal(load(models, "unet").conv_out.weight, expected.conv_out.weight)
    index = json.loads((models / "unet" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    shard = models / "unet" / index["weight_map"]["conv_out.weight"]
    tensors = {name: tensor.clone() for name, tensor in load_file(shard).items()}
    save_file({name: tensor for name, tensor in tensors.items() if name != "conv_out.weight"}, shard)
    refuse(
        models, "unet", "unet/diffusion_pytorch_model.safetensors.index.json is not this UNet2DConditionModel; 1 miss"
    )
    shard.write_bytes(b"")
    refuse(models, "unet", f"unet/{shard.name} is empty")


@pytest.mark.parametrize("network", NETWORKS)
def test_a_damaged_file_is_named(models: Path, network: str) -> None:
    (models / NETWORKS[network][1]).write_bytes(b"version https://git-lfs.github.com/spec/v1\nsize 1234567\n")
    refuse(models, network, "model.safetensors is a pointer of large-file storage to a file of 1,234,567 bytes")


# -- numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("network", "value"), [*((one, float("nan")) for one in NETWORKS), ("unet", float("inf"))])
def test_a_value_that_is_no_number_is_found_when_it_is_loaded(models: Path, network: str, value: float) -> None:
    def one_value(tensors: Tensors) -> Tensors:
        name = next(key for key in tensors if key.endswith(NETWORKS[network][2]))
        tensors[name].view(-1)[0] = value
        return tensors

    change(models, network, one_value)
    with pytest.raises(
        ConfigError, match=rf"\.safetensors has NaN or infinity as float32 in .*{NETWORKS[network][2]};"
    ):
        load(models, network)


def test_a_value_beyond_a_precision_is_found_in_that_one(models: Path) -> None:
    change(models, "unet", lambda t: {**t, "conv_in.bias": torch.full_like(t["conv_in.bias"], 1e30)})
    load(models, "unet", torch.bfloat16)
    with pytest.raises(
        ConfigError, match=r"has NaN or infinity as float16 in conv_in\.bias; take float32, or download"
    ):
        load(models, "unet", torch.float16)


# -- variants ----------------------------------------------------------------------------------------------------


def test_a_variant_is_found_by_itself_where_it_is_the_only_one(models: Path) -> None:
    expected = {network: load(models, network) for network in NETWORKS}
    for network, (_, file, _) in NETWORKS.items():
        change(models, network, lambda tensors: {name: tensor.half() for name, tensor in tensors.items()})
        (models / file).rename((models / file).with_suffix(".fp16.safetensors"))
        found = load(models, network)
        assert found.dtype == torch.float32
        wanted = expected[network].state_dict()
        for name, tensor in found.state_dict().items():
            assert torch.equal(tensor, wanted[name].half().float() if tensor.is_floating_point() else wanted[name])


def test_of_two_sets_of_weights_the_plain_one_is_taken_or_the_one_asked_for(models: Path) -> None:
    file = models / NETWORKS["unet"][1]
    shutil.copy(file, file.with_suffix(".other.safetensors"))
    change(models, "unet", lambda tensors: {name: torch.zeros_like(tensor) for name, tensor in tensors.items()})
    assert not load(models, "unet").conv_in.weight.any()
    assert load(models, "unet", variant="other").conv_in.weight.any()


# -- what has no weights -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("tokenizer.json", "{", "tokenizer/tokenizer.json ends early, as a cut download does"),
        ("tokenizer.json", "<html>", "tokenizer/tokenizer.json is a web page of 6 bytes"),
        ("tokenizer.json", "{}", "tokenizer cannot be loaded ("),
        ("tokenizer_config.json", "[]", "tokenizer/tokenizer_config.json holds a list where a mapping belongs"),
        ("vocab.json", "", "tokenizer/vocab.json is empty"),
        ("merges.txt", "version https://git-lfs.github.com/spec/v1\n", "tokenizer/merges.txt is a pointer of large-"),
    ],
)
def test_a_tokenizer_that_cannot_be_read(models: Path, file: str, content: str, said: str) -> None:
    (models / "tokenizer" / file).write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_part(CLIPTokenizer.from_pretrained, folder_of(models, "tokenizer"), vocabulary=True)
    assert str(caught.value).startswith(f"policy.model={models}: {said}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("load_it", "folder"), [(CLIPTokenizer.from_pretrained, "tokenizer"), (CLIPProcessor.from_pretrained, "scorer")]
)
def test_a_tokenizer_without_a_vocabulary_is_not_made_up(models: Path, load_it: Any, folder: str) -> None:
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (models / folder / name).unlink(missing_ok=True)  # transformers 4 writes no tokenizer.json
    with pytest.raises(ConfigError, match=r"holds neither tokenizer\.json nor vocab\.json with merges\.txt; add them"):
        load_part(load_it, folder_of(models, folder), vocabulary=True)
