"""`ray_cluster.yaml` is what Ray accepts, and what the issue of open clusters asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text("utf-8"))
    return values


def test_ray_accepts_it(cluster: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(cluster)  # with Ray's defaults for the provider
    validate_config(prepared)  # against Ray's ray-schema.json
    assert prepared["available_node_types"]["sampler"]["max_workers"] == 8


def test_ray_would_refuse_a_setting_that_is_none(cluster: dict[str, Any]) -> None:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(ValidationError, match="max_worker"):
        validate_config(prepare_config({**cluster, "max_worker": 3}))


def test_no_work_lands_on_the_head_and_the_learner_is_not_on_spot(cluster: dict[str, Any]) -> None:
    head, learner, sampler = (cluster["available_node_types"][name] for name in ("head", "learner", "sampler"))
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in learner["node_config"]
    assert learner["labels"] == {"raydense/role": "learner", "ray.io/market-type": "on-demand"}
    assert sampler["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert sampler["labels"] == {"raydense/role": "sampler", "ray.io/market-type": "spot"}
    assert (sampler["min_workers"], sampler["max_workers"], learner["min_workers"]) == (0, 8, 1)
    assert cluster["max_workers"] >= learner["max_workers"] + sampler["max_workers"]


def test_the_versions_are_the_ones_that_the_project_runs_with(cluster: dict[str, Any]) -> None:
    import ray

    assert f":{ray.__version__}-" in cluster["docker"]["image"]


def test_tokens_are_on_and_the_dashboard_is_on_loopback(cluster: dict[str, Any]) -> None:
    head, worker = cluster["head_start_ray_commands"][-1], cluster["worker_start_ray_commands"][-1]
    assert all("RAY_AUTH_MODE=token ray" in c or "RAY_AUTH_MODE=token RAY" in c for c in (head, worker))
    assert "--dashboard-host=127.0.0.1" in head
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "security_group" not in cluster["provider"]  # no port beyond Ray's default of SSH and the cluster's own
    assert not any(
        option.startswith(("-p", "--privileged", "--publish")) for option in cluster["docker"]["run_options"]
    )


def test_no_secret_is_in_it() -> None:
    text = (ROOT / "ray_cluster.yaml").read_text("utf-8")
    assert not any(word in text for word in ("AKIA", "hf_", "RAY_AUTH_TOKEN="))
