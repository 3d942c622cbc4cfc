"""Which pipelines are of this family: refused by their files alone, each in one line that says why."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from raydense.config import Config, ConfigError
from raydense.diffusion.policy import Policy
from raydense.families.family import height_and_width
from raydense.pipelines.pipeline_files import token_count
from raydense.planning.preflight import check_inputs, check_pipeline

Change = Mapping[str, Mapping[str, Any]]  # file: its new values; None takes a key out
Check = Callable[[Change], None]


@contextmanager
def changed(model: Path, change: Change) -> Iterator[None]:
    """The pipeline's JSON files with other values inside the block."""
    before = {model / name: (model / name).read_text() for name in change}
    for path, text in before.items():
        path.write_text(json.dumps({**json.loads(text), **change[path.relative_to(model).as_posix()]}))
    try:
        yield
    finally:
        for path, text in before.items():
            path.write_text(text)


@pytest.fixture(scope="module")
def model(pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(pipeline_dir, tmp_path_factory.mktemp("pipelines") / "model"))


@pytest.fixture
def check(model: Path, small_config: Callable[..., Config]) -> Check:
    def run(change: Change) -> None:
        with changed(model, change):
            check_pipeline(small_config(policy={"model": str(model)}))

    return run


def unet(**values: Any) -> Change:
    return {"unet/config.json": values}


def vae(**values: Any) -> Change:
    return {"vae/config.json": values}


def text(**values: Any) -> Change:
    return {"text_encoder/config.json": values}


def index(**values: Any) -> Change:
    return {"model_index.json": values}


REFUSED: dict[str, tuple[Change, str]] = {
    "inpainting": (unet(in_channels=9), "in_channels=9, as for inpainting, but the VAE's latent_channels=4"),
    "pix2pix": (unet(in_channels=8), "in_channels=8, as a picture editor's, but the VAE's latent_channels=4"),
    "upscaler": (
        unet(in_channels=7, num_class_embeds=1000),
        "in_channels=7, as an upscaler's, .*; unet/config.json: num_class_embeds=1000: it wants a class or a noise",
    ),
    "depth": (unet(in_channels=5), "in_channels=5, but the VAE's latent_channels=4"),
    "learned variance": (unet(out_channels=8), "out_channels=8, but in_channels=4: it predicts a variance too"),
    "fewer outputs": (unet(out_channels=3), "out_channels=3, but in_channels=4;"),
    "class embeddings": (unet(class_embed_type="timestep"), "class_embed_type=timestep: it wants a class"),
    "class labels": (unet(num_class_embeds=10), "num_class_embeds=10: it wants a class"),
    "text and time": (
        unet(addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=64),
        "addition_embed_type=text_time: it wants further embeddings, as Stable Diffusion XL's does",
    ),
    "image embeddings": (
        unet(encoder_hid_dim=32, encoder_hid_dim_type="image_proj"),
        "encoder_hid_dim=32, encoder_hid_dim_type=image_proj: it wants other embeddings",
    ),
    "guidance as an input": (unet(time_cond_proj_dim=256), "time_cond_proj_dim=256: it is distilled"),
    "image beside text": (unet(dual_cross_attention=True), "dual_cross_attention=True: it wants an image"),
    "another width": (unet(cross_attention_dim=24), "cross_attention_dim=24, but the text encoder's hidden_size=16"),
    "another text encoder": (text(hidden_size=32), "cross_attention_dim=16, but the text encoder's hidden_size=32"),
    "the class's width": (unet(cross_attention_dim=1280), "cross_attention_dim=1280, but the text encoder's"),
    "16 channels": (vae(latent_channels=16), "unet/config.json: in_channels=4, but the VAE's latent_channels=16"),
    "other pictures": (vae(out_channels=4), "vae/config.json: out_channels=4, but a picture has 3"),
    "shifted latents": (vae(shift_factor=0.1), "shift_factor=0.1: its latents are shifted"),
    "normalised latents": (vae(latents_mean=[0.1] * 4), r"latents_mean=\[0.1, 0.1, 0.1, 0.1\]: its latents are norma"),
    "no scale": (vae(scaling_factor=0), "scaling_factor=0, by which latents are divided"),
    "a projected text encoder": (
        text(architectures=["CLIPTextModelWithProjection"]),
        "its text_encoder is a CLIPTextModelWithProjection, not a CLIPTextModel",
    ),
    "another text encoder's class": (
        index(text_encoder=["transformers", "T5EncoderModel"]),
        "its text_encoder is a T5EncoderModel, not a CLIPTextModel",
    ),
    "another tokenizer": (
        index(tokenizer=["transformers", "T5Tokenizer"]),
        "its tokenizer is a T5Tokenizer, not a CLIPTokenizer",
    ),
    "a U-Net of another class": (
        unet(_class_name="UNet3DConditionModel"),
        "its unet is a UNet3DConditionModel, not a UNet2DConditionModel",
    ),
    "a U-Net of its own code": (index(unet=["my_unet", "MyUNet"]), "its unet is a MyUNet, not a UNet2DConditionModel"),
    "a decoder of another class": (vae(_class_name="AutoencoderTiny"), "its vae is a AutoencoderTiny, not a Auto"),
    "two sizes": (unet(sample_size=[8, 12]), r"sample_size=\[8, 12\] is not one size; set sampler.latent_size, such a"),
    "no size": (unet(sample_size=None), "sample_size=None is not one size; set sampler.latent_size, such as 64 or"),
    "another family": (
        index(_class_name="KandinskyPipeline"),
        "is a KandinskyPipeline by its model_index.json; known: StableDiffusionPipeline, StableDiffusionXLPipeline, ",
    ),
    "no family": (index(_class_name=None), "is a None by its model_index.json; known: StableDiffusionPipeline"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name: str, check: Check, model: Path) -> None:
    change, said = REFUSED[name]
    with pytest.raises(ConfigError, match=said) as caught:
        check(change)
    assert str(caught.value).startswith(f"policy.model={model}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        unet(class_embed_type=None, num_class_embeds=None, encoder_hid_dim=None),
        vae(shift_factor=None, latents_mean=None),
        text(architectures=["CLIPTextModel"]),
        index(tokenizer=["transformers", "CLIPTokenizerFast"], image_encoder=[None, None], unet=None),
        text(architectures=None),
    ],
    ids=["unet", "vae", "text", "index", "unnamed"],
)
def test_what_fits_is_not(change: Change, check: Check) -> None:
    check(change)


def test_a_directory_without_an_index_is_judged_by_its_folders(model: Path, check: Check) -> None:
    (model / "model_index.json").rename(model / "away")
    try:
        check({})
        with pytest.raises(ConfigError, match="in_channels=9"):
            check(unet(in_channels=9))
    finally:
        (model / "away").rename(model / "model_index.json")


def test_another_family_is_named_before_its_folders_are_missed(tmp_path: Path, small_config: Any) -> None:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "PixArtAlphaPipeline"}))
    with pytest.raises(ConfigError, match=r"is a PixArtAlphaPipeline by its model_index.json; known: "):
        check_pipeline(small_config(policy={"model": str(tmp_path)}))


def test_every_problem_is_in_the_line(check: Check) -> None:
    with pytest.raises(ConfigError, match=r"in_channels=9.*time_cond_proj_dim=256.*cross_attention_dim=24.*shift_f"):
        check({**unet(in_channels=9, cross_attention_dim=24, time_cond_proj_dim=256), **vae(shift_factor=0.1)})


# -- latents ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "sample_size", "expected"),
    [(None, 8, (8, 8)), (12, 8, (12, 12)), ((8, 12), 8, (8, 12)), ((8, 12), None, (8, 12)), (12, [8, 9], (12, 12))],
)
def test_height_and_width(chosen: Any, sample_size: Any, expected: tuple[int, int]) -> None:
    assert height_and_width(chosen, sample_size, "unet/config.json") == expected


@pytest.mark.parametrize("sample_size", [None, [8, 12], (8, 8), "8", 0, True, 8.5])
def test_a_size_that_the_pipeline_does_not_give_is_asked_for(sample_size: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(f"sample_size={sample_size} is not one size; set sampler.latent_s")):
        height_and_width(None, sample_size, "unet/config.json")


# -- tokens -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoder", "tokenizer", "expected"),
    [
        ({"max_position_embeddings": 12}, {"model_max_length": 12}, 12),
        ({"max_position_embeddings": 77}, {"model_max_length": 16}, 16),
        ({"max_position_embeddings": 12}, {"model_max_length": 77}, 12),
        ({"max_position_embeddings": 12}, {"model_max_length": 1000000000000000019884624838656}, 12),
        ({"max_position_embeddings": 12}, {"model_max_length": None}, 12),
        ({"max_position_embeddings": 12}, {}, 12),
        ({"max_position_embeddings": 12}, None, 12),
        ({}, None, 77),
    ],
)
def test_a_prompt_has_as_many_tokens_as_both_take(encoder: Any, tokenizer: Any, expected: int) -> None:
    assert token_count(encoder, tokenizer) == expected


@pytest.mark.parametrize("length", [None, 77])
def test_a_tokenizer_without_a_length_is_cut_to_the_text_encoders_positions(
    length: int | None,
    model: Path,
    small_config: Callable[..., Config],
    make_policy: Callable[..., Policy],
    tmp_path: Path,
) -> None:
    long = "a red fox on a hill"
    expected = make_policy(model).encode(long)["prompt_embeds"]
    file = model / "tokenizer" / "tokenizer_config.json"
    before = file.read_text()
    values = {**json.loads(before), "model_max_length": length}
    if length is None:
        del values["model_max_length"]
    file.write_text(json.dumps(values))
    try:
        assert CLIPTokenizer.from_pretrained(str(model / "tokenizer")).model_max_length > 12
        assert make_policy(model).encode(long)["prompt_embeds"].equal(expected)
        (tmp_path / "train.txt").write_text(f"a cat\na dog\n{long}\n")
        prompts = {"train": str(tmp_path / "train.txt")}
        (note,) = check_inputs(small_config(policy={"model": str(model)}, prompts=prompts)).notes
    finally:
        file.write_text(before)
    assert "prompt 3: the model reads 10 tokens of 'a red fox on a hill'; cut off: " in note


def test_a_tokenizer_of_another_text_encoder_is_refused(
    model: Path, small_config: Callable[..., Config], tmp_path: Path
) -> None:
    other = Path(shutil.copytree(model, tmp_path / "model"))
    values = json.loads((other / "text_encoder" / "config.json").read_text())
    values |= {"vocab_size": 20, "bos_token_id": 18, "eos_token_id": 19, "pad_token_id": 19}
    CLIPTextModel(CLIPTextConfig(**values)).save_pretrained(other / "text_encoder")
    said = "its tokenizer has 54 tokens, but its text_encoder's vocab_size=20; give a"
    with pytest.raises(ConfigError, match=said):
        check_inputs(small_config(policy={"model": str(other)}))
