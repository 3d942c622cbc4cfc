"""What a kind of model cannot take is one line before any work, with what is allowed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_families import write_flux, write_sd3, write_sdxl
from small_models import write_pipeline

from raydense.config import Config, ConfigError, load_config
from raydense.families.conditioning import repeated
from raydense.planning.preflight import as_found, check_pipeline
from raydense.wiring.policies import build_policy
from raydense.wiring.roles import build_learner

WRITERS: dict[str, Callable[..., Any]] = {
    "sd": write_pipeline,
    "sdxl": write_sdxl,
    "sd3": write_sd3,
    "flux": write_flux,
}
Sections = Mapping[str, Mapping[str, Any]]
SETTINGS: list[tuple[str, Sections, str]] = [
    ("sd3", {"steps": {"exclude_last": 0}}, "would draw step 3 of 4, which has no density under steps.dynamics=cps; "
     "set steps.exclude_last=1 or more"),
    ("sd3", {"steps": {"window": (2, 4)}}, "would draw step 3 of 4, which has no density"),
    ("sd3", {"steps": {"dynamics": "ddim"}}, "steps.dynamics=ddim is not for a StableDiffusion3Pipeline; allowed: cps, "
     "flow-sde, dance-sde"),
    ("sdxl", {"steps": {"dynamics": "cps"}}, "steps.dynamics=cps is not for a StableDiffusionXLPipeline; allowed: d"),
    ("sdxl", {"evaluate": {"dynamics": "ode"}}, "evaluate.dynamics=ode is not for a StableDiffusionXLPipeline; allo"),
    ("flux", {"policy": {"t5": None}}, "policy.t5=null: a FluxPipeline cannot do without its text_encoder_2"),
    ("flux", {"sampler": {"latent_size": (8, 7)}}, r"sampler.latent_size=\(8, 7\) cannot be packed: it takes even"),
    ("sd3", {"policy": {"lora_targets": ("to_qq",)}}, "'to_qq' matches nothing in the transformer"),
    ("sd", {"steps": {"eta": 1.5}}, "steps.dynamics=ddim: steps.eta=1.5 exceeds 1, which ddim cannot have; lower it"),
    ("sdxl", {"steps": {"eta": 1.5}}, "steps.dynamics=ddim: steps.eta=1.5 exceeds 1, which ddim cannot have"),
    ("sd3", {"steps": {"eta": 1.5}}, "steps.dynamics=cps: steps.eta=1.5 exceeds 1, which cps cannot have"),
    ("flux", {"steps": {"dynamics": "flow-sde", "eta": 1.2}, "evaluate": {"dynamics": "cps"}},
     "evaluate.dynamics=cps: steps.eta=1.2 exceeds 1, which cps cannot have"),
    ("sd", {"evaluate": {"steps": 2000}}, "evaluate.steps=2000 does not fit the scheduler's 1000 timesteps; lower it"),
    ("sd", {"steps": {"count": 2000}, "evaluate": {"steps": 10}}, "steps.count=2000 does not fit the scheduler's"),
    ("sd3", {"policy": {"t5_tokens": 0}}, "policy.t5_tokens=0: its text_encoder_3 reads at least 1; raise it, or leav"),
    ("flux", {"policy": {"t5_tokens": 0}}, "policy.t5_tokens=0: its text_encoder_2 reads at least 1"),
    ("sd", {"policy": {"t5_tokens": 12}}, "policy.t5_tokens=12: a StableDiffusionPipeline has no T5; leave it null"),
    ("sdxl", {"policy": {"t5": None}}, "policy.t5=null: a StableDiffusionXLPipeline has no T5; leave it device"),
    ("sdxl", {"policy": {"t5_dtype": "bfloat16"}}, "policy.t5_dtype=bfloat16: a StableDiffusionXLPipeline has no T5; "
     "leave it float32"),
    ("sd3", {"steps": {"spacing": "leading"}}, "steps.spacing=leading: the scheduler of a StableDiffusion3Pipeline "
     "spaces its noise levels; leave it null"),
    ("flux", {"steps": {"spacing": "trailing"}}, "steps.spacing=trailing: the scheduler of a FluxPipeline spaces"),
    ("sd3", {"sampler": {"latent_size": (8, 7)}}, "sampler.latent_size=8x7 cannot be cut into patches: it takes mult"),
    ("sd3", {"sampler": {"latent_size": 26}}, "latent_size=26x26 is beyond the 24 that its pos_embed_max_size=12 has "),
]  # fmt: skip
FILES: list[tuple[str, str, Mapping[str, Any], str]] = [
    (
        "sdxl",
        "unet/config.json",
        {"addition_embed_type": None},
        "addition_embed_type=None, but this kind's is text_t",
    ),
    ("sdxl", "unet/config.json", {"cross_attention_dim": 16}, "but its text encoders' states have 28 together"),
    (
        "sdxl",
        "unet/config.json",
        {"projection_class_embeddings_input_dim": 40},
        "but 6 sizes and the pooled embeddi",
    ),
    ("sdxl", "vae/config.json", {"shift_factor": 0.1}, "shift_factor=0.1: its latents are shifted"),
    (
        "sdxl",
        "model_index.json",
        {"text_encoder_2": ["transformers", "CLIPTextModel"]},
        "its text_encoder_2 is a CLI",
    ),
    ("sd3", "transformer/config.json", {"in_channels": 4}, "in_channels=4, but the VAE's latent_channels=16"),
    ("sd3", "transformer/config.json", {"out_channels": 32}, "out_channels=32, but in_channels=16"),
    ("sd3", "transformer/config.json", {"joint_attention_dim": 64}, "joint_attention_dim=64, but the T5's d_model=32"),
    ("sd3", "transformer/config.json", {"pooled_projection_dim": 30}, "but its CLIPs' embeddings have 28 together"),
    ("sd3", "scheduler/scheduler_config.json", {"invert_sigmas": True}, "invert_sigmas=true cannot be taken over"),
    ("sd3", "scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}, "has no noise levels of a flow"),
    ("sd3", "vae/config.json", {"scaling_factor": 0}, "scaling_factor=0, by which latents are divided"),
    (
        "flux",
        "transformer/config.json",
        {"in_channels": 16},
        "in_channels=16, but the VAE's latents are 64 once pac",
    ),
    (
        "flux",
        "transformer/config.json",
        {"pooled_projection_dim": 8},
        "pooled_projection_dim=8, but text_encoder's",
    ),
    (
        "flux",
        "transformer/config.json",
        {"guidance_embeds": False},
        "sampler.guidance_scale=3: this FluxPipeline takes no guidance; set it to 1",
    ),
    ("sd3", "model_index.json", {"_class_name": ["pipeline", "Own"]}, r"is a \['pipeline', 'Own'\] by its model_index"),
    (
        "flux",
        "model_index.json",
        {"tokenizer_2": ["transformers", "CLIPTokenizer"]},
        "its tokenizer_2 is a CLIPToke",
    ),
]


@pytest.fixture
def make_config(make_once: Callable[..., Path], small_config: Callable[..., Config]) -> Callable[..., Config]:
    def make(kind: str, model: Path | None = None, **sections: Any) -> Config:
        whole: dict[str, Any] = {"policy": {}, "sampler": {}, **sections}
        tokens = {"t5_tokens": 12} if kind in ("sd3", "flux") else {}
        model = model or make_once(f"kind-{kind}", WRITERS[kind])
        whole["policy"] = {"model": str(model), **tokens, **whole["policy"]}
        whole["sampler"] = {"latent_size": 8, **whole["sampler"]}
        return small_config(**whole)

    return make


@pytest.mark.parametrize(("kind", "sections", "said"), SETTINGS)
def test_a_setting(kind: str, sections: Sections, said: str, make_config: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=said):
        check_pipeline(make_config(kind, **sections))


@pytest.mark.parametrize(("kind", "file", "change", "said"), FILES)
def test_a_file(
    kind: str, file: str, change: Mapping[str, Any], said: str, make_config: Callable[..., Config],
    make_once: Callable[..., Path], tmp_path: Path,
) -> None:  # fmt: skip
    model = tmp_path / "model"
    shutil.copytree(make_once(f"kind-{kind}", WRITERS[kind]), model)
    (model / file).write_text(json.dumps({**json.loads((model / file).read_text()), **change}))
    with pytest.raises(ConfigError, match=said):
        check_pipeline(make_config(kind, model))


@pytest.mark.parametrize("kind", [kind for kind in WRITERS if kind != "sd"])
def test_a_part_that_is_missing_is_named(
    kind: str, make_config: Callable[..., Config], make_once: Callable[..., Path], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(make_once(f"kind-{kind}", WRITERS[kind]), model)
    shutil.rmtree(model / "text_encoder_2")
    with pytest.raises(ConfigError, match="has no text_encoder_2/; give a whole pipeline directory"):
        check_pipeline(make_config(kind, model))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("steps.window=[3,2]", "window=[3, 2] is no part of the steps 0 to 10; give [a, b] with a < b <= count"),
        ("steps.window=[3,11]", "window=[3, 11] is no part of the steps 0 to 10"),
        ("steps.dynamics=ode", "steps.dynamics='ode': input should be 'ddim', 'cps', 'flow-sde' or 'dance-sde'"),
    ],
)
def test_a_setting_that_is_wrong_for_any_kind(setting: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=[setting])
    assert said in str(caught.value)


def test_a_t5_that_is_left_out_may_leave_no_tokens(make_config: Callable[..., Config]) -> None:
    config = make_config("sd3", policy={"t5": None, "t5_tokens": 0})
    pipeline = check_pipeline(config)
    policy = build_policy(as_found(config, pipeline), dtype="float32", device=torch.device("cpu"), with_decoder=False)
    shapes = {name: tuple(tensor.shape) for name, tensor in policy.encode("a cat").items()}
    assert shapes == policy.family.conditioning_shapes
    assert shapes["prompt_embeds"] == (12, 32)


def test_the_t5_can_be_left_out_and_then_zeros_stand_for_it(make_config: Callable[..., Config]) -> None:
    config = make_config("sd3", policy={"t5": None})
    pipeline = check_pipeline(config)
    assert not pipeline.has("text_encoder_3")
    policy = build_policy(as_found(config, pipeline), dtype="float32", device=torch.device("cpu"), with_decoder=False)
    assert set(policy.texts) == {"text_encoder", "text_encoder_2"}
    states = policy.encode("a cat")["prompt_embeds"]
    assert states.shape == (24, 32)
    assert not states[12:].any()


def test_embeddings_are_stored_in_16_bits_where_the_t5_has_them(make_config: Callable[..., Config]) -> None:
    config = make_config("sd3", policy={"t5_dtype": "bfloat16", "t5": "cpu"})
    policy = build_policy(config, dtype="float32", device=torch.device("cpu"), with_decoder=False)
    assert {t.dtype for t in policy.encode("a cat").values()} == {torch.float16}
    assert policy.texts["text_encoder_3"].network.dtype == torch.bfloat16
    assert policy.texts["text_encoder"].network.dtype == torch.float32
    whole = build_policy(make_config("sd3"), dtype="float32", device=torch.device("cpu"), with_decoder=False)
    near, exact = policy.encode("a cat")["prompt_embeds"].float(), whole.encode("a cat")["prompt_embeds"]
    assert 0 < float((near - exact).norm() / exact.norm()) < 0.02


def test_what_is_left_to_the_kind_is_recorded(make_config: Callable[..., Config]) -> None:
    config = make_config("sd3", steps={"count": 6})
    found = as_found(config, check_pipeline(config))
    assert (found.steps.dynamics, found.steps.exclude_last, found.steps.drawn) == ("cps", 2, range(4))
    assert (found.evaluate.dynamics, found.evaluate.steps) == ("ode", 28)
    assert found.policy.lora_targets is not None
    assert "add_q_proj" in found.policy.lora_targets
    windowed = make_config("sd3", steps={"count": 6, "window": (1, 3)})
    assert as_found(windowed, check_pipeline(windowed)).steps.drawn == range(1, 3)


def test_a_learner_keeps_no_text_encoder_and_guides_as_a_sampler_does(make_config: Callable[..., Config]) -> None:
    config = make_config("sd3")
    learner: Any = build_learner(config, fetch=lambda groups: groups)
    whole = build_policy(config, dtype="float32", device=torch.device("cpu"), with_decoder=False)
    assert learner.policy.texts == {}
    x, t = torch.randn(2, 16, 8, 8), torch.tensor([0, 1])
    given = repeated(whole.encode("a cat"), 2)
    assert torch.equal(learner.policy.predict(x, t, given), whole.predict(x, t, given))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_clip_by_step_begins_above_three_times_its_dtypes_noise(
    dtype: str, make_config: Callable[..., Config]
) -> None:
    config = make_config("sd", train={"clip": "auto"}, learner={"dtype": dtype})
    learner: Any = build_learner(config, fetch=lambda groups: groups)
    clip = learner._objective._clip
    clip.observe(np.zeros((1, 1), np.int64), np.full((1, 64, 1), 1e-9, np.float32))
    assert clip.now()[0] == pytest.approx({"bfloat16": 3e-3, "float16": 1.5e-4, "float32": 1e-9}[dtype])


@pytest.mark.parametrize(
    ("kind", "dtype", "decoder"),
    [("sdxl", "float16", "float32"), ("sdxl", "bfloat16", "float32"), ("sd3", "bfloat16", "bfloat16")],
)
def test_a_decoder_is_as_wide_as_its_file_asks_for(
    kind: str, dtype: str, decoder: str, make_config: Callable[..., Config]
) -> None:
    policy = build_policy(make_config(kind), dtype=dtype, device=torch.device("cpu"), with_decoder=True)
    assert (policy.dtype, policy.vae.dtype) == (getattr(torch, dtype), getattr(torch, decoder))  # type: ignore[union-attr]
