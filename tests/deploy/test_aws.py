"""What `ray up ray_cluster.yaml` asks of AWS, by Ray's own code against a simulated one; SSH is shown on `hosts`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

FILE = Path(__file__).resolve().parents[2] / "ray_cluster.yaml"
Sent = list[tuple[str, Mapping[str, Any]]]  # operation and parameters


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Sent:
    """Every request of a cluster's beginning: the head, the learner's node, and a sampler's when it is asked for."""
    import botocore.client
    from moto import mock_aws
    from ray.autoscaler._private.aws import config as ray_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config
    from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_NODE_NAME, TAG_RAY_USER_NODE_TYPE

    requests: Sent = []
    send = botocore.client.BaseClient._make_api_call

    def record(client: Any, operation: str, parameters: Mapping[str, Any]) -> Any:
        requests.append((operation, parameters))
        return send(client, operation, parameters)

    with pytest.MonkeyPatch.context() as patch, mock_aws(config={"iam": {"load_aws_managed_policies": True}}):
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # for the key that is made
        patch.setattr(botocore.client.BaseClient, "_make_api_call", record)
        patch.setattr(ray_aws, "time", SimpleNamespace(sleep=lambda seconds: None))  # for AWS to spread a role's name
        config = ray_aws.bootstrap_aws(prepare_config(yaml.safe_load(FILE.read_text("utf-8"))))
        provider = AWSNodeProvider(config["provider"], config["cluster_name"])
        for name, kind in config["available_node_types"].items():
            extra = config["head_node"] if name == config["head_node_type"] else {}
            tags = {TAG_RAY_NODE_KIND: "head" if extra else "worker", TAG_RAY_NODE_NAME: f"ray-{name}"}
            provider.create_node({**kind["node_config"], **extra}, {**tags, TAG_RAY_USER_NODE_TYPE: name}, 1)
    return requests


def of(sent: Sent, operation: str) -> list[Mapping[str, Any]]:
    return [parameters for name, parameters in sent if name == operation]


def machines(sent: Sent) -> dict[str, Mapping[str, Any]]:
    """The request for a machine of each node type."""
    tags = [(run, {tag["Key"]: tag["Value"] for tag in run["TagSpecifications"][0]["Tags"]}) for run in
            of(sent, "RunInstances")]  # fmt: skip
    return {by_name["ray-user-node-type"]: run for run, by_name in tags}


def test_samplers_are_spot_machines_and_nobody_else_is(sent: Sent) -> None:
    markets = {name: run.get("InstanceMarketOptions") for name, run in machines(sent).items()}
    assert markets == {"head": None, "learner": None, "sampler": {"MarketType": "spot"}}


def test_no_port_is_open_but_ssh(sent: Sent) -> None:
    (created,) = of(sent, "CreateSecurityGroup")
    (opened,) = of(sent, "AuthorizeSecurityGroupIngress")
    inside, ssh = opened["IpPermissions"]
    assert inside["UserIdGroupPairs"] == [{"GroupId": opened["GroupId"]}]  # the cluster's own machines
    assert "IpRanges" not in inside
    assert (ssh["IpProtocol"], ssh["FromPort"], ssh["ToPort"]) == ("tcp", 22, 22)
    assert created["GroupName"] == "ray-autoscaler-raydense"
    assert all(run["SecurityGroupIds"] == [opened["GroupId"]] for run in machines(sent).values())


def test_machines_are_encrypted_and_ask_for_a_metadata_token(sent: Sent) -> None:
    for run in machines(sent).values():
        assert run["MetadataOptions"]["HttpTokens"] == "required"
        assert [device["Ebs"]["Encrypted"] for device in run["BlockDeviceMappings"]] == [True]
        assert run["KeyName"] == "ray-autoscaler_us-west-2"


def test_only_the_head_may_start_machines_and_write_to_s3(sent: Sent) -> None:
    """The driver is there, which alone writes to `--out`."""
    profiles = {name: run.get("IamInstanceProfile") for name, run in machines(sent).items()}
    assert profiles["head"] is not None and profiles["learner"] is profiles["sampler"] is None
    policies = {attached["PolicyArn"].rpartition("/")[2] for attached in of(sent, "AttachRolePolicy")}
    assert policies == {"AmazonEC2FullAccess", "AmazonS3FullAccess"}


def test_the_machines_are_those_of_the_file(sent: Sent) -> None:
    kinds = {name: run["InstanceType"] for name, run in machines(sent).items()}
    assert kinds == {"head": "m6i.2xlarge", "learner": "g6e.4xlarge", "sampler": "g6e.2xlarge"}
