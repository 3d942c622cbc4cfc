"""`raydense bench` through the command line: rates, work and phases that add up, and a plan that rests on them."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from raydense.bench.architectures import MODELS, VIT_H_14
from raydense.bench.measure import plan_workloads
from raydense.bench.table import _images
from raydense.cli import app
from raydense.config import load_config
from raydense.planning.dry_run import count_transitions
from raydense.planning.footprint import denoiser_footprint
from raydense.planning.units import read_prompt_sets
from raydense.wiring.policies import lora_config, read_family

SMALL = ["sampler.unit_prompts=2", "train.batch_groups=2", "learner.micro_batch=2"]
SETTINGS = [word for setting in SMALL for word in ("--set", setting)]


def invoke(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture(scope="module")
def file(warm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command wrote in a process that has no Ray."""
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    arguments = ["bench", "--rounds", "2", "--json", str(path), *SETTINGS]
    code = f"import sys; sys.modules['ray'] = None; from raydense.cli import main; main({arguments!r})"
    done = subprocess.run([warm_python, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    path.with_suffix(".txt").write_text(done.stdout)
    return path


@pytest.fixture(scope="module")
def found(file: Path) -> Any:
    return json.loads(file.read_text())


def test_the_rates_are_the_work_over_its_time(found: Any) -> None:
    tiny, config = found["models"]["tiny"], load_config(overrides=SMALL)
    transitions = count_transitions(config) // (config.stage.count * config.stage.steps)
    for role, rate, count in (
        ("sampler", "images_per_s", 2 * config.sampler.trajectories),
        ("learner", "transitions_per_s", transitions),
        ("scorer", "images_per_s", 2 * config.sampler.trajectories),
    ):
        role = tiny[role]
        quarter = (role["seconds"]["quartile_high"] - role["seconds"]["quartile_low"]) / 2  # of the way between the two
        faster = count / (role["seconds"]["quartile_low"] - quarter)
        slower = count / (role["seconds"]["quartile_high"] + quarter)
        assert role[rate] == pytest.approx((faster + slower) / 2, rel=1e-3)
        assert role["quartiles"] == pytest.approx([(faster + 3 * slower) / 4, (3 * faster + slower) / 4], rel=1e-3)
        assert role["rounds"] == 2
    assert transitions == tiny["learner"]["transitions"] == 2 * 2 * 3


def test_the_phases_make_up_the_round(found: Any) -> None:
    sampler, learner = found["models"]["tiny"]["sampler"], found["models"]["tiny"]["learner"]
    assert set(sampler["phases"]) == {"denoise", "decode", "score", "other"}
    assert set(learner["phases"]) == {"batch", "reference", "forward", "backward", "optimizer", "other"}
    for role in (sampler, learner):
        assert min(role["phases"].values()) > 0
        assert sum(role["phases"].values()) == pytest.approx(role["seconds"]["median"], rel=0.1)  # medians of two
    assert sampler["phases"]["denoise"] > sampler["phases"]["score"]
    assert learner["phases"]["backward"] > learner["phases"]["optimizer"]


def test_work_is_counted_from_the_calls_that_were_made(found: Any) -> None:
    sampler, learner = found["models"]["tiny"]["sampler"], found["models"]["tiny"]["learner"]
    assert sampler["unet_rows"] == 10 * 10  # images x denoising steps, without guidance
    assert 0 < learner["unet_rows"] <= learner["transitions"]
    assert 0 < learner["reference_rows"] <= learner["transitions"]
    for role in (sampler, learner):
        assert role["flops_per_s"] == pytest.approx(role["flops"] / role["seconds"]["median"], rel=1e-6)  # of two
        assert role["share"] == pytest.approx(role["flops_per_s"] / role["matmul_flops_per_s"])
        assert 0 < role["share"] < 1
        assert role["peak_bytes"] > 0
    config = load_config(overrides=SMALL)
    forward, trained = (
        denoiser_footprint(
            read_family(config), lora_config(config), dtype=torch.float32, with_gradient=with_gradient
        ).flops
        for with_gradient in (False, True)
    )
    assert learner["flops"] == pytest.approx(learner["reference_rows"] * forward + learner["unet_rows"] * trained)
    assert sampler["flops"] > sampler["unet_rows"] * forward  # decoding too


def test_it_says_what_it_was_measured_on(file: Path, found: Any) -> None:
    tiny = found["models"]["tiny"]
    assert found["device"]
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert set(found["versions"]) >= {"raydense", "torch", "diffusers", "python", "cuda"}
    assert (tiny["sampler"]["threads"], tiny["learner"]["threads"]) == (1, 2)  # the preset's
    assert {tiny[role]["dtype"] for role in ("sampler", "learner", "scorer")} == {"float32"}
    assert tiny["scorer"]["scorer"] == "tiny-clip"
    shown = re.sub(r"[│\s]+", " ", file.with_suffix(".txt").read_text())
    assert f"{tiny['sampler']['images_per_s']:.4g} images/s" in shown
    assert found["device"] in shown
    assert tiny["sampler"]["image_size"] == tiny["scorer"]["image_size"] == [64, 64]
    assert _images({"images": 10, "image_size": [96, 64]}) == "10 images of 64 x 96"  # width first, as people say it


def test_a_plan_rests_on_the_measured_rates(file: Path, found: Any) -> None:
    result = invoke("train", "--dry-run", "--rates", file, "--log-format", "json")
    plan = json.loads(result.stdout)
    cost, tiny = plan["cost"], found["models"]["tiny"]
    assert cost["rates"]["source"] == f"measured: tiny on {found['device']}"
    images = plan["images"] + plan["judged_images"]
    assert cost["sampling_hours"] == pytest.approx(images / tiny["sampler"]["images_per_s"] / 2 / 3600)  # two samplers
    transitions = count_transitions(load_config())
    assert cost["training_hours"] == pytest.approx(transitions / tiny["learner"]["transitions_per_s"] / 3600)
    refused = invoke("train", "--dry-run", "--rates", file, "--set", "steps.count=20")
    assert refused.exit_code == 2
    assert "measured with 10 denoising steps and the plan has 20" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "sd21"], "--model=sd21 is no model of the benchmark; choose from tiny, unet-78m, sd15"),
        (["--json", "{}/absent/b.json"], "cannot be written (No such file or directory)"),
        (["--json", "{}"], "is there already and is never overwritten"),
        (["--set", "sampler.trajectorys=3"], "sampler.trajectorys is not a setting"),
        (["--set", "learner.device=cuda:7"], "learner.device=cuda:7: this process sees"),
        (["--set", "sampler.device=mps"], "sampler.device=mps is not measured; use cpu or cuda"),
        (["--set", "prompts.train=/absent"], "/absent"),
    ],
)
def test_bad_input_is_found_before_the_work(arguments: list[str], said: str, tmp_path: Path) -> None:
    result = invoke("bench", *(argument.format(tmp_path) for argument in arguments))
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_help_names_the_models_and_shows_an_example() -> None:
    text = re.sub(r"[│\s]+", " ", invoke("bench", "--help").stdout)
    assert all(name in text for name in MODELS)
    assert "raydense bench --model sd15-multi --json bench.json" in text


def test_a_cpu_does_less_unless_told_and_the_rate_stays_that_of_the_whole_chain() -> None:
    devices = ["sampler.device=cpu", "learner.device=cpu"]
    (workload,) = plan_workloads(["sd15"], devices)
    assert (workload.config.steps.count, workload.steps) == (2, 50)
    assert "steps.count=2" in workload.cut
    (told,) = plan_workloads(["sd15"], [*devices, "steps.count=4"])
    assert (told.config.steps.count, told.steps) == (4, 4)
    (tiny,) = plan_workloads(["tiny", "tiny"], devices)
    assert tiny.cut == ()


@pytest.mark.parametrize(
    ("model", "preset", "prompts", "tuples"),
    [
        ("sd15", "single-prompt", 6, 4),
        pytest.param("sd15-multi", "multi-prompt", 2, 32, marks=pytest.mark.slow),
    ],
)
def test_a_presets_own_work_units_and_batches_are_measured(model: str, preset: str, prompts: int, tuples: int) -> None:
    measured, own = MODELS[model].config(), load_config(None, preset)
    assert measured == own.model_copy(update={"prompts": measured.prompts})
    whole = ["steps.count=50", f"sampler.trajectories={own.sampler.trajectories}", f"train.batch_groups={tuples}"]
    (job,) = plan_workloads([model], ["sampler.device=cpu", "learner.device=cpu", *whole])
    assert (len(job.units[0].prompts), job.config.train.batch_tuples) == (prompts, tuples)
    assert job.units[0].prompts[0] in read_prompt_sets(job.config).train


def test_the_largest_scorer_is_hpsv2s_architecture() -> None:
    from transformers import CLIPConfig, CLIPModel

    text = {**VIT_H_14["text"], "vocab_size": 49408}
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=dict(VIT_H_14["vision"]), **VIT_H_14["both"]))
    assert sum(p.numel() for p in model.parameters()) == 986_109_441  # as in `scorer_memory.PARAMETERS`


@pytest.mark.gpu
def test_a_gpu_is_measured_by_its_own_clock_and_counter(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    result = invoke("bench", "--rounds", "2", "--json", file, *SETTINGS, "--debug")
    assert result.exit_code == 0
    found = json.loads(file.read_text())
    assert found["device"] == torch.cuda.get_device_name()
    for role in ("sampler", "learner", "scorer"):
        assert found["models"]["tiny"][role]["peak_bytes_are"] == "allocated on the GPU"
        assert found["models"]["tiny"][role]["peak_bytes"] > 0
    phases = found["models"]["tiny"]["learner"]["phases"]
    assert phases["backward"] > phases["optimizer"] > 0
