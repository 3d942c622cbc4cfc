"""The plan of a run against numbers worked out by hand, and the presets against the paper's table (METHOD §6)."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from actors.sampler import DiffusionSampler
from raydense.cli import app
from raydense.config import Config, load_config, preset_names
from raydense.core.types import WorkUnit
from raydense.pipelines.pipeline_files import read_pipeline
from raydense.planning.dry_run import check_and_plan, size
from raydense.planning.footprint import decoder_footprint
from raydense.planning.plan_table import _compiled
from raydense.wiring.policies import build_policy, compiles, read_family, records, sampled_rows
from raydense.wiring.roles import build_sampler

ROWS = "rows of the network a sampler"
EXACT = "sampler.exact=true"
LARGE = ("sdxl", "sd35-medium", "flux-dev")
BETAS, EPS, SEED = (0.9, 0.999), 1e-8, 42
PAPER: dict[str, dict[str, Any]] = {
    "single-prompt": {
        "seed": SEED,
        "policy.lora_rank": 4,
        "policy.lora_alpha": None,  # equal to the rank
        "policy.lora_targets": None,  # this kind's: to_q, to_k, to_v, to_out.0
        "prompts.train": "set://paper-train#index=0",
        "prompts.unseen": "set://paper-unseen#index=0",
        "reward.scorer.kind": "imagereward",
        "stage.count": 4,
        "stage.groups": 1000,
        "stage.steps": 2500,
        "sampler.trajectories": 5,
        "sampler.keep": 5,
        "sampler.shared_noise": False,
        "train.batch_groups": 4,
        "train.tuple_size": 2,
        "train.tuples": 1,
        "train.tuple_choice": "random",
        "train.ties": "random",
        "train.c": 10.0,
        "train.clip": 1e-4,
        "train.lr": 3e-5,
        "train.weight_decay": 2e-3,
        "train.betas": BETAS,
        "train.eps": EPS,
        "train.max_grad_norm": 1.0,
        "train.reg_to_pi_init": True,
        "train.reg_to_pi_old": False,
        "train.no_reg_warmup_ratio": 0.0,
        "steps.draws": 3,
        "steps.gamma": 0.9,
        "steps.count": 50,
        "steps.eta": 1.0,
        "steps.exclude_last": None,  # this kind's: 0
        "sampler.guidance_scale": 7.5,
        "sampler.latent_size": 64,
        "sampler.dtype": "bfloat16",
        "evaluate.images_per_prompt": 100,
        "evaluate.every_steps": 4 * 2500 // 10,
    }
}
PAPER["multi-prompt"] = PAPER["single-prompt"] | {
    "policy.lora_rank": 32,
    "prompts.train": "set://hpsv2-train",
    "prompts.unseen": "set://hpsv2-benchmark",
    "reward.scorer.kind": "hpsv2",
    "reward.scorer.version": "v2.0",
    "stage.count": 10,
    "stage.groups": 2000,
    "stage.steps": 4000,
    "sampler.trajectories": 12,
    "train.batch_groups": 32,
    "train.c": 12.5,
    "train.clip": 5e-4,
    "train.lr": 2e-5,
    "train.weight_decay": 1.5e-3,
    "train.max_grad_norm": 0.05,
    "steps.draws": 1,
    "evaluate.every_steps": 10 * 4000 // 10,
    "evaluate.prompts": 4 * 800,
    "evaluate.images_per_prompt": 1,
}


@pytest.mark.parametrize("name", PAPER)
def test_a_preset_holds_the_papers_numbers(name: str) -> None:
    config = load_config(preset=name)
    for path, expected in PAPER[name].items():
        found: Any = config
        for part in path.split("."):
            found = getattr(found, part)
        assert found == expected, path


def test_the_papers_settings_in_numbers() -> None:
    plan = check_and_plan(load_config(preset="single-prompt"), tflops=100.0)
    assert plan.lora_parameters == 797_184  # METHOD §6
    assert plan.unet_parameters == 859_520_964
    assert plan.lora_bytes == 4 * 797_184
    assert (plan.images, plan.groups, plan.gradient_steps) == (20_000, 4_000, 10_000)
    assert plan.image_flops / 1e12 == pytest.approx(80, rel=0.05)  # METHOD §7
    assert plan.group_bytes == 5 * (51 * 4 * 64 * 64 * 2 + 50 * 4 + 4) + 77 * 768 * 4
    assert plan.replay_bytes == 1000 * plan.group_bytes
    assert plan.sampling_hours == pytest.approx(plan.sampling_flops / 1e14 / 3600)


def test_the_multi_prompt_setting_in_numbers() -> None:
    plan = check_and_plan(load_config(preset="multi-prompt"), tflops=100.0)
    assert (plan.images, plan.gradient_steps) == (240_000, 40_000)
    assert plan.replay_bytes / 1e9 == pytest.approx(17, abs=0.5)  # METHOD §7
    assert plan.lora_bytes / 1e6 == pytest.approx(25, abs=0.6)
    # 40,000 steps x 32 groups x a pair x 2 guidance halves of forward, backward and reference
    assert plan.training_flops / (40_000 * 32 * 2 * 2) / 0.8e12 == pytest.approx(3.25, abs=0.2)


def test_an_average_is_one_more_copy_of_the_lora() -> None:
    preset = "single-prompt"
    without, with_it = (check_and_plan(load_config(preset=preset, overrides=o), 100.0) for o in ([], ["train.ema=0.9"]))
    keep = load_config(preset=preset).checkpoint.keep_last
    assert with_it.learner_gpu_bytes - without.learner_gpu_bytes == with_it.lora_bytes
    assert with_it.checkpoint_bytes - without.checkpoint_bytes == keep * with_it.lora_bytes
    assert with_it.lora_bytes == without.lora_bytes


def test_more_samplers_take_less_time() -> None:
    changes = ["samplers.count=8", "samplers.num_gpus=1"]
    one, eight = (check_and_plan(load_config(preset="multi-prompt", overrides=o), 100.0) for o in ([], changes))
    assert eight.sampling_hours == pytest.approx(one.sampling_hours / 8)
    assert eight.training_hours == one.training_hours


@pytest.mark.parametrize(
    ("length", "latent_size", "targets"),
    [
        pytest.param(12, None, ["to_q", "to_out.0"], marks=pytest.mark.slow),
        (9, None, ["to_q", "conv1", "proj_in"]),
        (None, 9, ["to_q", "to_out.0"]),
        (12, (8, 12), ["to_q", "conv1", "proj_in"]),
    ],
)
def test_the_plan_is_what_a_group_and_a_policy_really_are(
    small_config: Callable[..., Config],
    pipeline_dir: Path,
    tmp_path: Path,
    length: int | None,
    latent_size: Any,
    targets: list[str],
) -> None:
    shutil.copytree(pipeline_dir, tmp_path / "model")
    file = tmp_path / "model" / "tokenizer" / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_max_length": length}))
    model = {"model": str(tmp_path / "model"), "lora_targets": targets}
    config = small_config(policy=model, sampler={"latent_size": latent_size})
    plan = check_and_plan(config, 100.0)
    sampler: DiffusionSampler = build_sampler(config)
    policy = build_policy(config, dtype="float32", device=torch.device("cpu"), with_decoder=False)
    weights = policy.weights()
    _, (group,) = sampler.sample(WorkUnit(0, 0, (0,), ("a cat",), 0), weights)
    assert plan.group_bytes == group.nbytes
    assert plan.lora_parameters == sum(array.size for array in weights.tensors.values())


def test_a_portrait_takes_the_work_and_memory_of_its_pixels(pipeline_dir: Path) -> None:
    vae = read_pipeline(str(pipeline_dir), None, fetch=False)["vae"] or {}
    square, portrait, landscape = (
        decoder_footprint(vae, latent_size=size, dtype=torch.float32) for size in ((8, 8), (16, 8), (8, 16))
    )
    assert portrait == landscape
    assert 2 < portrait.flops / square.flops < 2.5  # attention grows faster than its pixels
    assert portrait.peak_bytes == pytest.approx(2 * square.peak_bytes, rel=0.05)


def test_what_is_replaced_of_a_pipelines_own_is_in_the_plans_notes(
    small_config: Callable[..., Config], pipeline_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(pipeline_dir, tmp_path / "model")
    file = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "timestep_spacing": "linspace"}))
    config = small_config(policy={"model": str(tmp_path / "model")})
    (note,) = check_and_plan(config, 100.0).notes
    assert "timestep_spacing=linspace cannot be had" in note
    assert "leading, 751 … 1" in note


@pytest.mark.parametrize("name", [name for name in preset_names() if name not in LARGE])
def test_every_preset_passes(name: str) -> None:
    result = CliRunner().invoke(app, ["train", "--preset", name, "--dry-run"])
    assert result.exit_code == 0, result.output
    for fact in ("images", "gradient steps", "LoRA", "replay", "object store", "memory", "FLOP", "hours"):
        assert fact in result.stdout


@pytest.mark.parametrize(
    ("preset", "settings", "said"),
    [
        (
            "multi-prompt",
            [],
            "networks of samplers, on a GPU with a compiler: 24,000,000 rows of the network a sampler",
        ),
        (
            "multi-prompt",
            ["samplers.max=200"],
            "nothing: 120,000 rows of the network a sampler are too few for it to pay",
        ),
        ("multi-prompt", ["sampler.guidance_scale=1", "policy.compile=true"], "networks of samplers and learner"),
        ("multi-prompt", ["policy.compile=false"], "nothing"),
        ("multi-prompt", [EXACT], "nothing: sampler.exact=true computes as the learner does"),
        ("multi-prompt", [EXACT, "policy.compile=true"], "networks of samplers and learner"),
        ("tiny", [], f"nothing: 16,000 {ROWS} are too few for it to pay"),
        ("flux-dev", [], f"networks of samplers, on a GPU with a compiler: 1,200,000 {ROWS}"),
    ],
)
def test_what_is_compiled_where_is_said_beforehand(preset: str, settings: list[str], said: str) -> None:
    config = load_config(None, preset, settings)
    assert _compiled(config, sampled_rows(config, read_family(config, fetch=False))) == said


@pytest.mark.parametrize(
    ("preset", "settings", "device", "compiled", "recorded"),
    [
        ("multi-prompt", [], "cuda:0", True, True),
        ("multi-prompt", [], "cpu", False, False),
        ("multi-prompt", ["policy.compile=false"], "cuda:0", False, False),
        ("multi-prompt", [EXACT], "cuda:0", False, False),
        ("multi-prompt", [EXACT, "policy.compile=true"], "cuda:0", True, False),
        ("tiny", [], "cuda:0", False, True),
        ("tiny", ["policy.compile=true"], "cpu", True, False),
    ],
)
def test_a_samplers_network_is_compiled_where_it_pays(
    preset: str, settings: list[str], device: str, compiled: bool, recorded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(None, preset, settings)
    assert compiles(config, torch.device(device)) is compiled
    assert records(config, torch.device(device)) is recorded
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert compiles(config, torch.device(device)) is (compiled and config.policy.compile is True)


def test_a_machine_reads_the_plan() -> None:
    result = CliRunner().invoke(app, ["train", "--set", "stage.groups=100", "--dry-run", "--log-format", "json"])
    assert json.loads(result.stdout)["images"] == 100 * load_config().stage.count * load_config().sampler.trajectories


def test_nothing_is_started_or_loaded(warm_python: Path, tmp_path: Any) -> None:
    code = (
        "import sys; from raydense.cli import app; app(['train', '--dry-run'], standalone_mode=False);"
        "print('ray' in sys.modules)"
    )
    done = subprocess.run([warm_python, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1_670_000, "1.67 MB"), (1.7e10, "17 GB")])
def test_bytes_as_people_read_them(count: float, text: str) -> None:
    assert size(count) == text


LARGE_PLANS: dict[str, dict[str, Any]] = {
    # A row: 2 D² × (24 blocks of 12 on 1,024 tokens, 13 of 4 more, 23 of 12 on 333 of text), D = 1536, its attention
    # 0.36 TFLOP, its LoRA 0.04; 20 rows and a decoding of 2.5
    "sd35-medium": {"flops": 52.0, "learner_gb": 20},
    # a U-Net of 2.98 TMAC as published, without attention's products; 100 rows and a decoding of 10
    "sdxl": {"flops": 650, "learner_gb": 30},
    # A row: 2 D² × (19 + 38 blocks of 12) on 1,536 tokens, D = 3072, its attention 1.65 TFLOP, its LoRA 0.12; 10 rows
    # and a decoding. The learner: 24 GB of weights, and what checkpointing leaves of the activations.
    "flux-dev": {"flops": 218.5, "learner_gb": 30},
}
PLANNED_IN_S = 30  # of one core; some 10 for each, where nothing else runs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "network", "parameters", "conditioning"),
    [
        ("sd35-medium", "transformer", 2_243_171_520, 2 * ((77 + 256) * 4096 + 2048)),
        ("sdxl", "U-Net", 2_567_463_684, 4 * (77 * 2048 + 1280 + 6)),
        ("flux-dev", "transformer", 11_901_408_320, 2 * (512 * 4096 + 768)),
    ],
)
def test_a_large_model_is_planned_by_its_published_files(
    preset: str, network: str, parameters: int, conditioning: int
) -> None:
    """plain: `test_every_preset_passes`, of `tiny-flow`; and `test_the_papers_settings_in_numbers`."""
    started = time.process_time()
    result = CliRunner().invoke(app, ["train", "--preset", preset, "--dry-run", "--log-format", "json"])
    assert result.exit_code == 0, result.output
    assert time.process_time() - started < PLANNED_IN_S
    plan, config = json.loads(result.stdout), load_config(None, preset)
    close = 0.1 if preset == "sdxl" else 0.01
    assert plan["image_flops"] / 1e12 == pytest.approx(LARGE_PLANS[preset]["flops"], rel=close)
    assert plan["learner_gpu_bytes"] / 1e9 < LARGE_PLANS[preset]["learner_gb"]
    assert (plan["network"], plan["unet_parameters"]) == (network, parameters)
    channels, states = (4, 51) if preset == "sdxl" else (16, 10 if preset == "sd35-medium" else 11)
    size, kept, steps = config.sampler.latent_size, config.sampler.keep, config.steps.count
    assert isinstance(size, int)
    assert plan["group_bytes"] == kept * (2 * states * channels * size**2 + 4 * steps + 4) + conditioning
    assert any("is not on this machine: planned with its published architecture" in note for note in plan["notes"])
