"""Hours and money of a plan from measured rates, against numbers worked out by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from raydense.cli import app
from raydense.config import load_config
from raydense.planning.cost import Rates, estimate_cost
from raydense.planning.dry_run import check_and_plan

H100 = {"sampler": {"images_per_s": 2.0}, "learner": {"transitions_per_s": 40.0}}


def write_rates(path: Path, **models: Any) -> str:
    path.write_text(json.dumps({"device": "NVIDIA H100", "models": models}))
    return str(path)


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["train", "--dry-run", *arguments])


def unwrapped(table: str) -> str:
    return re.sub(r"[│\s]+", " ", table)


def test_hours_money_and_balance_of_the_papers_multi_prompt_setting(tmp_path: Path) -> None:
    rates = write_rates(tmp_path / "bench.json", sd15=H100, tiny={})
    fleet = ["--set", "samplers.count=4", "--set", "samplers.num_gpus=1", "--set", "learner.num_gpus=1"]
    options = ["--rates", rates, "--price-per-gpu-hour", "2.5", "--log-format", "json"]
    result = invoke("--preset", "multi-prompt", *fleet, *options)
    plan = json.loads(result.stdout)
    cost, images = plan["cost"], 240_000 + plan["judged_images"]
    assert cost["sampling_hours"] == pytest.approx(images / 2 / 4 / 3600)
    assert cost["training_hours"] == pytest.approx(40_000 * 32 * 2 / 40 / 3600)  # steps x groups x a pair, N_step = 1
    assert cost["devices"] == 5
    assert cost["money"] == pytest.approx(5 * (cost["sampling_hours"] + cost["training_hours"]) * 2.5)
    assert cost["balanced_samplers"] == pytest.approx((images / 2) / (40_000 * 32 * 2 / 40))
    assert cost["rates"]["source"] == "measured: sd15 on NVIDIA H100"


def test_overlapped_work_takes_as_long_as_the_slower_half(tmp_path: Path) -> None:
    rates = write_rates(tmp_path / "bench.json", tiny=H100)
    overlapped = ["--set", "stage.schedule=overlapped", "--rates", rates, "--log-format", "json"]
    cost = json.loads(invoke(*overlapped).stdout)["cost"]
    assert cost["hours"] == max(cost["sampling_hours"], cost["training_hours"])
    assert cost["gpu_hours"] == cost["devices"] * cost["hours"]


def test_the_table_says_what_it_rests_on(tmp_path: Path) -> None:
    rates = write_rates(tmp_path / "bench.json", any={**H100})
    text = unwrapped(invoke("--rates", rates, "--price-per-gpu-hour", "1").stdout)
    assert "measured: any on NVIDIA H100" in text  # the only model there is
    assert "at the given price" in text
    assert "100 TFLOP/s a device, assumed" in unwrapped(invoke().stdout)


def test_a_picture_to_judge_counts_by_its_work(tmp_path: Path) -> None:
    rates = write_rates(tmp_path / "bench.json", tiny=H100)
    flow = ["--preset", "tiny-flow", "--set", "evaluate.steps=40"]
    result = invoke(*flow, "--rates", rates, "--log-format", "json")
    plan = json.loads(result.stdout)
    judged_flops = plan["sampling_flops"] - plan["images"] * plan["image_flops"]
    each = judged_flops / plan["judged_images"] / plan["image_flops"]
    assert 2.8 < each < 2.9  # 40 steps against 10, and one decoding each: a third of the work of ten steps
    hours = (plan["images"] + each * plan["judged_images"]) / 2 / 3600 / 2  # two pictures a second, two samplers
    assert plan["cost"]["sampling_hours"] == pytest.approx(hours)


@pytest.mark.parametrize("preset", ["multi-prompt", "tiny-flow"])
def test_without_a_measurement_the_hours_are_those_of_the_assumed_rate(preset: str) -> None:
    config = load_config(preset=preset)
    plan = check_and_plan(config, 100.0)
    cost = estimate_cost(config, plan, Rates.assumed(config, plan))
    assert cost.sampling_hours == pytest.approx(plan.sampling_hours)
    assert cost.training_hours == pytest.approx(plan.training_hours)
    assert cost.money is None


def test_one_gpu_for_both_roles_is_one_device(tmp_path: Path) -> None:
    rates = write_rates(tmp_path / "bench.json", tiny=H100)
    shared = ["--set", "samplers.count=1", "--set", "samplers.num_gpus=0.5", "--set", "learner.num_gpus=0.5"]
    cost = json.loads(invoke(*shared, "--rates", rates, "--log-format", "json").stdout)["cost"]
    assert cost["devices"] == 1


@pytest.mark.parametrize(("name", "model"), [("bench #1.json", ""), ("run #7#x/bench.json", "#any")])
def test_a_mark_that_no_model_follows_belongs_to_the_path(tmp_path: Path, name: str, model: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    rates = write_rates(tmp_path / name, any=H100)
    assert Rates.measured(f"{rates}{model}", load_config()).source == "measured: any on NVIDIA H100"


@pytest.mark.parametrize(
    ("models", "location", "said"),
    [
        ({"a": H100, "b": H100}, "{}", "has no tiny; choose one of a, b as --rates '"),
        ({"a": H100}, "{}#b", "has no b; choose one of a as --rates '"),
        ({"a": {"sampler": {"images_per_s": 0}}}, "{}", "sampler.images_per_s is missing or no positive number"),
        ({"a": {**H100, "learner": {}}}, "{}", "learner.transitions_per_s is missing or no positive number"),
        (
            {"a": {**H100, "sampler": {"images_per_s": 2.0, "steps": 50}}},
            "{}",
            "a was measured with 50 denoising steps and the plan has 10; measure with raydense bench",
        ),
        (None, "{}", "has no models; measure them with raydense bench --json FILE"),
        ({}, "absent.json", "--rates=absent.json cannot be read"),
    ],
)
def test_rates_that_are_none(models: Any, location: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps({"device": "x", "models": models}))
    result = invoke("--rates", location.format(path))
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_price_without_a_plan_is_refused() -> None:
    result = CliRunner().invoke(app, ["train", "--price-per-gpu-hour", "2"])
    assert result.exit_code == 2
    assert "--rates and --price-per-gpu-hour are for a plan; add --dry-run" in result.stderr
