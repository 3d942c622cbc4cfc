"""`auto`: what fits the memory or fills the device, the same on every CPU, and a number in the run's configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from raydense.cli import app
from raydense.config import Config, ConfigError, load_config
from raydense.pipelines.published import PUBLISHED, SD15
from raydense.planning.dry_run import plan_run
from raydense.planning.micro_batch import CPU_BYTES, GPU_SHARE, FreeGpu, settled
from raydense.planning.preflight import check_pipeline

AUTO = "learner.micro_batch=auto"
PIPELINE = check_pipeline(load_config())


def on_a_gpu(bytes_: float, samplers: int = 0) -> Callable[[Config], FreeGpu]:
    return lambda config: FreeGpu(int(bytes_), samplers)


def without_gpu(config: Config) -> None:
    return None


@pytest.fixture(scope="module")
def config() -> Config:
    """16 tuples a step."""
    return load_config(overrides=[AUTO, "train.batch_groups=16"])


@pytest.fixture(scope="module")
def needed(config: Config) -> Callable[[int], float]:
    """Bytes free on a GPU that a micro-batch of so many tuples needs."""
    plan = plan_run(config, PIPELINE, None, tflops=1.0)
    return lambda tuples: (plan.learner_gpu_bytes + (tuples - 1) * plan.tuple_bytes) / GPU_SHARE + 10


@pytest.mark.parametrize(
    ("fits", "chosen"),
    [(1, 1), (3, 3), (5, 4), (7, 6), (8, 8), (15, 8), (16, 16), (99, 16)],  # as few parts as fit, as equal as may be
)
def test_the_parts_are_as_few_as_fit_and_equal(
    config: Config, needed: Callable[[int], float], fits: int, chosen: int
) -> None:
    result = settled(config, PIPELINE, on_a_gpu(needed(fits)))
    assert result.learner.micro_batch == chosen
    assert result == config.model_copy(update={"learner": result.learner})  # nothing else is changed
    planned = plan_run(result, PIPELINE, None, tflops=1.0)
    assert planned.learner_gpu_bytes <= GPU_SHARE * needed(fits)


def test_a_gpu_that_a_sampler_shares_leaves_less(config: Config, needed: Callable[[int], float]) -> None:
    plan = plan_run(config, PIPELINE, None, tflops=1.0)
    assert settled(config, PIPELINE, on_a_gpu(needed(8), samplers=0)).learner.micro_batch == 8
    for count in (1, 2):
        free = needed(8) + count * plan.sampler_gpu_bytes / GPU_SHARE
        assert settled(config, PIPELINE, on_a_gpu(free, samplers=count)).learner.micro_batch == 8


def test_every_worker_takes_its_share(config: Config) -> None:
    values = config.model_dump()
    values["learner"] |= {"num_workers": 3}
    assert settled(Config.model_validate(values), PIPELINE, on_a_gpu(1e12)).learner.micro_batch == 6  # of 16


def test_on_a_cpu_it_is_the_same_everywhere(config: Config) -> None:
    plan = plan_run(config, PIPELINE, None, tflops=1.0)
    chosen = settled(config, PIPELINE, without_gpu).learner.micro_batch
    assert chosen == 16
    assert plan.learner_gpu_bytes + 15 * plan.tuple_bytes <= CPU_BYTES
    small = load_config(overrides=[AUTO, "train.batch_groups=16", f"learner.memory_gb={plan.learner_gpu_bytes / 1e9}"])
    assert settled(small, PIPELINE, without_gpu).learner.micro_batch == 1
    large, files = load_config(None, "single-prompt"), replace(PIPELINE, parts={**PIPELINE.parts, **PUBLISHED[SD15][1]})
    assert plan_run(large, files, None, tflops=1.0).learner_gpu_bytes > CPU_BYTES
    assert settled(large, files, without_gpu).learner.micro_batch == 1


@pytest.mark.parametrize("preset", ["single-prompt", pytest.param("multi-prompt", marks=pytest.mark.slow)])
def test_a_units_prompts_are_a_number_too_and_need_no_memory_that_judging_does_not(preset: str) -> None:
    config = load_config(None, preset, ["learner.micro_batch=1"])
    files = replace(PIPELINE, parts={**PIPELINE.parts, **PUBLISHED[SD15][1]})
    result = settled(config, files, without_gpu)
    assert (config.sampler.unit_prompts, result.sampler.unit_prompts) == ("auto", 32 // config.sampler.trajectories)
    assert result == config.model_copy(update={"sampler": result.sampler})
    assert settled(result, files, without_gpu) == result
    one = load_config(None, preset, ["learner.micro_batch=1", "sampler.unit_prompts=1", "policy.compile=false"])
    planned = [plan_run(some, files, None, tflops=1.0).sampler_gpu_bytes for some in (config, result, one)]
    assert planned[0] == planned[1] <= planned[2]


def test_what_fits_nowhere_is_one_line(config: Config) -> None:
    with pytest.raises(ConfigError, match=r"^learner.micro_batch=auto: a single tuple needs about .*, but its GPU"):
        settled(config, PIPELINE, on_a_gpu(1e6))


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        (
            [],
            "; set learner.gradient_checkpointing=true, set a 16-bit learner.dtype, lower steps.draws, or give",
        ),
        (["learner.gradient_checkpointing=true", "steps.draws=1"], "; set a 16-bit learner.dtype, or give the learner"),
        (["learner.gradient_checkpointing=true", "steps.draws=1", "learner.dtype=bfloat16"], "; give the learner mor"),
    ],
)
def test_what_fits_nowhere_is_advised_only_what_is_left(settings: list[str], advice: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settled(load_config(overrides=[AUTO, *settings]), PIPELINE, on_a_gpu(1e6))
    assert advice in str(caught.value)


def test_a_run_records_the_number_and_its_result_is_that_of_the_number(
    small_values: dict[str, Any], tmp_path: Path
) -> None:
    runs, stage = {}, {**small_values["stage"], "count": 1}
    for micro_batch in ("auto", 4):
        file, out = tmp_path / f"{micro_batch}.yaml", tmp_path / f"run-{micro_batch}"
        sampler = {**small_values["sampler"], "unit_prompts": "auto" if micro_batch == "auto" else 8}
        learner = {"micro_batch": micro_batch}
        file.write_text(yaml.safe_dump({**small_values, "stage": stage, "learner": learner, "sampler": sampler}))
        result = CliRunner().invoke(app, ["train", "--local", str(file), "--out", str(out)])
        assert result.exit_code == 0, result.output
        runs[micro_batch] = out
    recorded = yaml.safe_load((runs["auto"] / "config.yaml").read_text())
    assert recorded["learner"]["micro_batch"] == 4  # of a batch of 4
    assert recorded["sampler"]["unit_prompts"] == 8  # of 4 trajectories each
    for name in ("lora/pytorch_lora_weights.safetensors", "metrics.jsonl", "config.yaml"):
        assert (runs["auto"] / name).read_bytes() == (runs[4] / name).read_bytes()


@pytest.mark.ray
@pytest.mark.slow
def test_on_ray_too(small_values: dict[str, Any], ray_cluster: None, tmp_path: Path) -> None:
    """plain: `test_a_run_records_the_number_and_its_result_is_that_of_the_number`."""
    file, out = tmp_path / "auto.yaml", tmp_path / "run"
    values = {**small_values, "learner": {"micro_batch": "auto"}, "stage": {"count": 1, "groups": 4, "steps": 1}}
    values["samplers"] = {**values["samplers"], "count": 1}
    file.write_text(yaml.safe_dump(values))
    result = CliRunner().invoke(app, ["train", str(file), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert yaml.safe_load((out / "config.yaml").read_text())["learner"]["micro_batch"] == 4


@pytest.mark.parametrize("how", ["--local", "--replay-from"])
def test_several_workers_need_ray(how: str, small_values: dict[str, Any], tmp_path: Path, small_runs: Any) -> None:
    file = tmp_path / "two.yaml"
    file.write_text(yaml.safe_dump({**small_values, "learner": {"num_workers": 2}}))
    start = [str(file), how] if how == "--local" else [how, str(small_runs[0]), "--set", "learner.num_workers=2"]
    result = CliRunner().invoke(app, ["train", *start, "--out", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert f"learner.num_workers=2: {how} has one process; add --set learner.num_workers=1" in result.output
    assert not (tmp_path / "run").exists()


def test_more_workers_than_tuples_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"learner.num_workers=5 exceeds the 4 tuples of a batch"):
        load_config(overrides=["train.batch_groups=4", "learner.num_workers=5"])
