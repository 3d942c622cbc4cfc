"""LoRA files of every origin become the policy's weights, tensor by tensor, or an error that lists what differs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from raydense.config import ConfigError
from raydense.core.types import PolicyWeights
from raydense.diffusion.lora import FILE_NAME, save_diffusers_lora
from raydense.diffusion.lora_files import load_lora
from raydense.diffusion.policy import Policy
from raydense.families.conditioning import repeated

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
ONE = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.default.weight"


def shapes(weights: PolicyWeights) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in weights.tensors.items()}


def tensors(weights: PolicyWeights, rename: Callable[[str], str]) -> dict[str, torch.Tensor]:
    return {rename(name): torch.from_numpy(array.copy()) for name, array in weights.tensors.items()}


def authors_name(name: str) -> str:
    """down_blocks.0….attn1.to_q.lora_A.default.weight → down_blocks.0….attn1.processor.to_q_lora.down.weight"""
    for to in ("to_q", "to_k", "to_v", "to_out.0"):
        for letter, half in (("A", "down"), ("B", "up")):
            short = to.removesuffix(".0")
            name = name.replace(f".{to}.lora_{letter}.default.", f".processor.{short}_lora.{half}.")
    return name


def write_diffusers(directory: Path, weights: PolicyWeights) -> None:
    save_diffusers_lora(directory, weights, LoraConfig(r=2, lora_alpha=2, target_modules=TARGETS))


def write_diffusers_with_peft_names(directory: Path, weights: PolicyWeights) -> None:
    save_file(tensors(weights, lambda n: f"unet.{n.replace('.default', '')}"), directory / FILE_NAME)


def write_peft(directory: Path, weights: PolicyWeights, **changes: Any) -> None:
    names = tensors(weights, lambda n: f"base_model.model.{n.replace('.default', '')}")
    save_file(names, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 2, **changes}))


def write_authors(directory: Path, weights: PolicyWeights) -> None:
    torch.save(tensors(weights, authors_name), directory / "pytorch_model.bin")


FORMATS = {
    "diffusers": (write_diffusers, FILE_NAME),
    "diffusers with peft's names": (write_diffusers_with_peft_names, FILE_NAME),
    "peft": (write_peft, "adapter_model.safetensors"),
    "authors": (write_authors, "pytorch_model.bin"),
}


@pytest.fixture(scope="module")
def weights(make_policy: Callable[..., Policy], perturbed: Callable[..., PolicyWeights]) -> PolicyWeights:
    return perturbed(make_policy(rank=2), version=0)


@pytest.mark.parametrize("given", ["directory", "file"])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_weights_back_bit_for_bit(
    weights: PolicyWeights, tmp_path: Path, name: str, given: str
) -> None:
    write, file_name = FORMATS[name]
    write(tmp_path, weights)
    location = tmp_path if given == "directory" else tmp_path / file_name
    found = load_lora(str(location), shapes(weights), rank=2, alpha=2)
    assert (found.version, found.checksum) == (0, weights.checksum)


@pytest.mark.parametrize("name", FORMATS)
@torch.no_grad()
def test_what_was_read_is_what_then_predicts(
    make_policy: Callable[..., Policy], weights: PolicyWeights, tmp_path: Path, name: str
) -> None:
    FORMATS[name][0](tmp_path, weights)
    trained, started = make_policy(rank=2), make_policy(rank=2, seed=9)
    trained.bind(weights)
    started.bind(load_lora(str(tmp_path), shapes(weights), rank=2, alpha=2))
    x, t, embeds = torch.ones(1, 4, 8, 8), torch.tensor([1]), repeated(trained.encode("a cat"), 1)
    assert torch.equal(started.predict(x, t, embeds), trained.predict(x, t, embeds))
    with started.reference():
        assert float((started.predict(x, t, embeds) - trained.predict(x, t, embeds)).abs().max()) > 1e-2


def test_an_adapter_that_peft_itself_saved(
    make_policy: Callable[..., Policy], pipeline_dir: Path, tmp_path: Path
) -> None:
    expected = shapes(make_policy(rank=2).weights())
    unet = UNet2DConditionModel.from_pretrained(pipeline_dir, subfolder="unet")
    config = LoraConfig(r=2, lora_alpha=2, target_modules=TARGETS, init_lora_weights=False)
    get_peft_model(unet, config).save_pretrained(tmp_path)
    found = load_lora(str(tmp_path), expected, rank=2, alpha=2)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert len(saved) == len(found.tensors) == 64
    name = f"base_model.model.{ONE.replace('.default', '')}"
    assert np.array_equal(found.tensors[ONE], saved[name].numpy())
    assert found.tensors[ONE.replace("lora_A", "lora_B")].any()


def test_sixteen_bit_files_are_read_as_float32(weights: PolicyWeights, tmp_path: Path) -> None:
    torch.save({n: t.bfloat16() for n, t in tensors(weights, authors_name).items()}, tmp_path / "pytorch_model.bin")
    found = load_lora(str(tmp_path), shapes(weights), rank=2, alpha=2)
    assert found.tensors[ONE].dtype == np.float32
    np.testing.assert_allclose(found.tensors[ONE], weights.tensors[ONE], rtol=2**-8)


# -- what does not fit ---------------------------------------------------------------------------------------


def refuse(location: Path, weights: PolicyWeights, said: str, *, rank: int = 2, alpha: float = 2) -> None:
    with pytest.raises(ConfigError) as caught:
        load_lora(str(location), shapes(weights), rank=rank, alpha=alpha)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "policy.init_lora=" in str(caught.value)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("damage", ["missing", "surplus", "misshapen"])
def test_tensors_that_do_not_fit_are_listed(weights: PolicyWeights, tmp_path: Path, name: str, damage: str) -> None:
    changed = dict(weights.tensors)
    if damage == "missing":
        del changed[ONE]
        listed = ONE
    elif damage == "surplus":
        listed = ONE.replace("down_blocks.0", "down_blocks.7")
        changed[listed] = changed[ONE]
    else:
        changed[ONE] = changed[ONE][:, :3]
        listed = f"{ONE} [2, 3], not [2, 8]"
    FORMATS[name][0](tmp_path, PolicyWeights.of(0, changed))
    refuse(tmp_path, weights, f"1 {damage}: {listed}")


def test_layers_of_other_kinds_come_with_the_setting_that_takes_them(
    make_policy: Callable[..., Policy], weights: PolicyWeights, tmp_path: Path
) -> None:
    wider = make_policy(rank=2, targets=["to_q", "ff.net.2", "conv1", "to_out.0"]).weights()
    write_diffusers(tmp_path, wider)
    refuse(tmp_path, weights, "; for what it adapts, set policy.lora_targets=[conv1, net.2, to_out.0, to_q]")
    write_diffusers(tmp_path, PolicyWeights.of(0, dict(list(weights.tensors.items())[1:])))
    with pytest.raises(ConfigError, match=r"1 missing: [^;]*$"):
        load_lora(str(tmp_path), shapes(weights), rank=2, alpha=2)


def test_a_long_list_is_cut_with_its_number(weights: PolicyWeights, tmp_path: Path) -> None:
    write_peft(tmp_path, PolicyWeights.of(0, {ONE: weights.tensors[ONE]}))
    refuse(tmp_path, weights, "63 missing")
    refuse(tmp_path, weights, "and 59 more")


def test_two_names_for_one_projection_are_refused(weights: PolicyWeights, tmp_path: Path) -> None:
    twice = {**tensors(weights, authors_name), f"unet.{ONE}": torch.from_numpy(weights.tensors[ONE])}
    torch.save(twice, tmp_path / "pytorch_model.bin")
    refuse(tmp_path, weights, "belong to one projection")


@pytest.mark.parametrize("name", FORMATS)
def test_another_rank_is_an_error_with_both(
    make_policy: Callable[..., Policy], weights: PolicyWeights, tmp_path: Path, name: str
) -> None:
    FORMATS[name][0](tmp_path, make_policy(rank=3).weights())
    refuse(tmp_path, weights, "has rank 3, but policy.lora_rank=2; make them agree")


@pytest.mark.parametrize("name", ["diffusers", "peft"])
def test_another_alpha_is_an_error_with_both(weights: PolicyWeights, tmp_path: Path, name: str) -> None:
    FORMATS[name][0](tmp_path, weights)
    refuse(tmp_path, weights, "has alpha 2, but policy.lora_alpha gives 8", alpha=8)


def test_a_file_without_an_alpha_means_its_rank(weights: PolicyWeights, tmp_path: Path) -> None:
    write_authors(tmp_path, weights)
    refuse(tmp_path, weights, "has alpha 2, but policy.lora_alpha gives 1", alpha=1)


@pytest.mark.parametrize("option", [{"use_rslora": True}, {"lora_bias": True}, {"use_qalora": True}])
def test_peft_options_that_change_the_meaning_are_refused(
    weights: PolicyWeights, tmp_path: Path, option: dict[str, Any]
) -> None:
    write_peft(tmp_path, weights, **option)
    refuse(tmp_path, weights, f"its {next(iter(option))} cannot be taken over")


def test_an_adapter_without_its_config_is_refused(weights: PolicyWeights, tmp_path: Path) -> None:
    write_peft(tmp_path, weights)
    (tmp_path / "adapter_config.json").unlink()
    refuse(tmp_path, weights, "adapter_config.json beside it cannot be read")


def test_nothing_there_and_too_much_there(weights: PolicyWeights, tmp_path: Path) -> None:
    refuse(tmp_path / "absent", weights, "is not there; give a file, or a directory with one of pytorch_lora")
    refuse(tmp_path, weights, "holds 0 of pytorch_lora_weights.safetensors, adapter_model.safetensors")
    write_peft(tmp_path, weights)
    write_authors(tmp_path, weights)
    refuse(tmp_path, weights, "holds 2 of")


@pytest.mark.parametrize("file_name", [FILE_NAME, "pytorch_model.bin"])
def test_a_damaged_file_is_named(weights: PolicyWeights, tmp_path: Path, file_name: str) -> None:
    (tmp_path / file_name).write_bytes(b"no tensors")
    refuse(tmp_path, weights, f"{file_name}: cannot be read as a file of tensors alone")


@pytest.mark.parametrize("file_name", [FILE_NAME, "pytorch_model.bin"])
def test_a_file_that_is_another_is_named_for_what_it_seems(
    weights: PolicyWeights, tmp_path: Path, file_name: str
) -> None:
    (tmp_path / file_name).write_text("version https://git-lfs.github.com/spec/v1\nsize 3226184\n")
    refuse(tmp_path, weights, f"{file_name}: is a pointer of large-file storage to a file of 3,226,184 bytes")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_no_number_is_refused(weights: PolicyWeights, tmp_path: Path, name: str, value: float) -> None:
    changed = {tensor: array.copy() for tensor, array in weights.tensors.items()}
    changed[ONE][1, 1] = value
    FORMATS[name][0](tmp_path, PolicyWeights.of(0, changed))
    refuse(tmp_path, weights, "has NaN or infinity in ")
    refuse(tmp_path, weights, "down_blocks.0.attentions.0.transformer_blocks.0.attn1.")


def test_a_pickle_that_would_run_code_is_not_opened(weights: PolicyWeights, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"a": Evil()}, tmp_path / "pytorch_model.bin")
    refuse(tmp_path, weights, "cannot be read as a file of tensors alone")
    assert not (tmp_path / "ran").exists()


def test_a_file_of_something_else_is_refused(weights: PolicyWeights, tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "pytorch_model.bin")
    refuse(tmp_path, weights, "holds no tensors by name")
