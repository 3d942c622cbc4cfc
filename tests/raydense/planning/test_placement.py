"""Who gets how much of which GPU."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from raydense.config import Config, ConfigError, load_config
from raydense.planning.dry_run import plan_run
from raydense.planning.placement import Placement, check_devices, check_shared_memory, place
from raydense.planning.preflight import check_pipeline

Make = Callable[..., Config]
AUTO: dict[str, Any] = {"count": None}


@pytest.mark.parametrize(
    ("gpus", "samplers", "learner", "expected"),
    [
        # gpus, samplers: section, learner: section → samplers, GPUs of each, GPUs of the learner
        (0, AUTO, {}, (1, 0, 0)),
        (0, {"count": 3}, {}, (3, 0, 0)),
        (1, AUTO, {}, (1, 0.5, 0.5)),  # the commonest machine: they share it
        (1, {"count": 2}, {}, (2, 0.25, 0.5)),
        (1, {"count": 3}, {}, (3, 0.1666, 0.5)),
        (1, AUTO, {"num_gpus": 0.25}, (1, 0.75, 0.25)),
        (1, {"count": 1, "num_gpus": 0.2}, {}, (1, 0.2, 0.5)),
        (1, AUTO, {"device": "cpu"}, (1, 1, 0)),
        (2, AUTO, {}, (1, 1, 1)),
        (4, AUTO, {}, (3, 1, 1)),
        (8, AUTO, {}, (7, 1, 1)),
        (8, {"count": 2}, {}, (2, 1, 1)),
        (3, {"count": 4}, {}, (4, 0.5, 1)),
        (3, {"count": 5}, {}, (5, 0.3333, 1)),  # three on one, two on the other
        (8, {"count": 14, "num_gpus": 0.5}, {}, (14, 0.5, 1)),
        (8, AUTO, {"num_gpus": 0}, (8, 1, 0)),
        (4, AUTO, {"num_gpus": 0.5}, (3, 1, 0.5)),
        (8, AUTO, {"num_workers": 4}, (4, 1, 1)),
        (8, {"count": 8}, {"num_workers": 4}, (8, 0.5, 1)),
    ],
)
def test_the_table(
    small_config: Make, gpus: int, samplers: dict[str, Any], learner: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    base = {"learner": {"threads": 1, **learner}}
    config = Config.model_validate({**small_config(samplers=samplers).model_dump(), **base})
    placement = place(config, gpus)
    assert (placement.samplers, placement.sampler_gpus, placement.learner_gpus) == pytest.approx(expected)
    taken = placement.samplers * placement.sampler_gpus + config.learner.num_workers * placement.learner_gpus
    assert taken <= max(gpus, 0) + 1e-9


def test_a_sampler_on_the_cpu_takes_no_gpu(small_config: Make) -> None:
    assert place(small_config(sampler={"device": "cpu"}), 1).sampler_gpus == 0


@pytest.mark.parametrize(
    ("overrides", "gpus", "said"),
    [
        (["sampler.device=cuda"], 0, "sampler.device=cuda: its actor is given 0 of the cluster's GPUs (0)"),
        (["sampler.device=cuda:7"], 1, "sampler.device=cuda:7: its actor is given 0.25 of the cluster's GPUs (1), and"),
        (["sampler.device=cuda:1"], 8, "sampler.device=cuda:1: its actor is given 1 of the cluster's GPUs (8)"),
        (["sampler.device=cuda", "samplers.num_gpus=0"], 8, "set auto or cpu, or samplers.num_gpus"),
        (["learner.device=cuda:0"], 0, "learner.device=cuda:0: its actor is given 0 of the cluster's GPUs (0)"),
        (["learner.device=cuda", "learner.num_gpus=0"], 2, "set auto or cpu, or learner.num_gpus"),
        (["reward.scorer.device=cuda"], 0, "scorer tiny-clip: device=cuda: its actor is given 0"),
        (["reward.scorer.device=cuda", "sampler.device=cpu"], 2, "set auto or cpu, or samplers.num_gpus"),
        (["sampler.device=cuda", "learner.device=cuda:0", "reward.scorer.device=cuda"], 1, None),
        (["sampler.device=cuda:1", "samplers.num_gpus=2"], 3, None),
        (["sampler.device=cuda", "samplers.num_gpus=1", "samplers.autoscale=true",
          "learner.num_gpus=0"], 0, None),
    ],
)  # fmt: skip
def test_an_actor_has_the_device_that_its_setting_names(overrides: list[str], gpus: int, said: str | None) -> None:
    config = load_config(overrides=overrides)
    if said is None:
        place(config, gpus)
    else:
        with pytest.raises(ConfigError) as caught:
            place(config, gpus)
        assert said in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7", "mps"])
@pytest.mark.parametrize("key", ["sampler", "learner", "reward.scorer"])
def test_a_process_has_the_device_that_a_setting_names(key: str, device: str) -> None:
    setting = "scorer tiny-clip: device" if key == "reward.scorer" else f"{key}.device"
    check_devices(load_config())
    with pytest.raises(ConfigError, match=rf"^{setting}={device}: this process sees no GPU.*; set auto or cpu"):
        check_devices(load_config(overrides=[f"{key}.device={device}"]))


def test_no_gpu_left_is_an_error(small_config: Make) -> None:
    config = Config.model_validate({**small_config().model_dump(), "learner": {"num_gpus": 1}})
    with pytest.raises(ConfigError, match=r"learner.num_gpus=1 leaves no GPU of 1 .* set samplers.num_gpus=0"):
        place(config, 1)


def test_workers_that_take_all_gpus_are_an_error(small_config: Make) -> None:
    config = Config.model_validate({**small_config().model_dump(), "learner": {"num_workers": 2}})
    with pytest.raises(ConfigError, match=r"learner.num_gpus=1 of each of learner.num_workers=2 leaves no GPU of 2"):
        place(config, 2)


@pytest.mark.parametrize(("gpus", "learner"), [(1, {}), (4, {"num_gpus": 0.5})])
def test_workers_never_share_a_gpu(small_config: Make, gpus: int, learner: dict[str, Any]) -> None:
    config = Config.model_validate({**small_config().model_dump(), "learner": {"num_workers": 2, **learner}})
    with pytest.raises(ConfigError, match=r"learner.num_workers=2 with learner.num_gpus=0.5 each would share a GPU"):
        place(config, gpus)


@pytest.mark.parametrize("preset", ["single-prompt", "multi-prompt"])
def test_the_papers_settings_share_one_gpu_and_spread_over_several(preset: str) -> None:
    config = load_config(preset=preset)
    assert place(config, 1).beside_the_learner() == 1
    assert place(config, 4).beside_the_learner() == 0
    assert place(config, 4).samplers == 3


def test_memory_is_checked_before_a_gpu_is_shared(small_config: Make) -> None:
    config = small_config()
    pipeline = check_pipeline(config)
    plan = plan_run(config, pipeline, None, tflops=1.0)
    for samplers, whose in ((1, "the sampler needs"), (3, "each of 3 samplers needs")):
        needed = samplers * plan.sampler_gpu_bytes + plan.learner_gpu_bytes
        check_shared_memory(config, pipeline, needed, samplers)
        with pytest.raises(
            ConfigError, match=rf"^one GPU for both roles: {whose} .* are free; lower sampler.unit_prompts"
        ) as caught:
            check_shared_memory(config, pipeline, needed - 1, samplers)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("samplers", "learner", "beside"),
    [(0.5, 0.5, 1), (0.25, 0.5, 2), (0.1, 0.7, 3), (0.1, 0.0, 0), (0.5, 1.0, 0), (0.6, 0.5, 0), (0.0, 0.5, 0)],
)
def test_every_sampler_that_fits_beside_the_learner_is_counted(samplers: float, learner: float, beside: int) -> None:
    assert Placement(3, 3, samplers, learner).beside_the_learner() == beside


ON_A_CLUSTER = """
import sys
from pathlib import Path
import ray, yaml
from raydense.config import load_config
from raydense.pipelines.base_model import BaseModel
from raydense.fleets.ray_runner import build_on_ray
from raydense.planning.preflight import check_pipeline

from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "num_gpus": 1, "include_dashboard": False})
ray.init(address=cluster.address, log_to_driver=False)
config = load_config(Path(sys.argv[1]))


def reserved():
    with build_on_ray(config, check_pipeline(config), BaseModel(), Path(sys.argv[2])) as (fleet, make_learner):
        weights = make_learner().weights()
        fleet.broadcast(weights)
        left = ray.available_resources()
        print(len(fleet._inner._actors), f"{left.get('GPU', 0):.2f}")


try:
    reserved()
    cluster.add_node(num_cpus=4, num_gpus=2)
    cluster.wait_for_nodes()
    reserved()
finally:
    ray.shutdown()
    cluster.shutdown()
"""


@pytest.mark.slow
@pytest.mark.ray
def test_actors_really_reserve_it(warm_python: Path, small_config: Make, tmp_path: Path) -> None:
    """On one GPU, then on three: how many samplers, and what is left.

    plain: `test_the_table`; and `test_samplers_are_spread_over_the_nodes_with_their_label`, of real actors.
    """
    (tmp_path / "config.yaml").write_text(small_config(samplers={"count": None}).to_yaml())
    command = [warm_python, "-c", ON_A_CLUSTER, tmp_path / "config.yaml", tmp_path / "segments"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["1 0.00", "2 0.00"]
