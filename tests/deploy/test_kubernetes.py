"""The overlays as kustomize renders them: valid against KubeRay's definitions and Kubernetes' own, and closed."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from raydense.cli import app

KUBERNETES = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
RENDER = ["kustomize", "build"] if shutil.which("kustomize") else ["kubectl", "kustomize"]
pytestmark = pytest.mark.skipif(shutil.which(RENDER[0]) is None, reason="neither kustomize nor kubectl is installed")

Resource = dict[str, Any]


@pytest.fixture(scope="module", params=["dev", "gpu"])
def overlay(request: pytest.FixtureRequest) -> tuple[str, list[Resource]]:
    done = subprocess.run([*RENDER, KUBERNETES / request.param], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return request.param, list(yaml.safe_load_all(done.stdout))


def the(kind: str, resources: list[Resource]) -> Resource:
    (found,) = [r for r in resources if r["kind"] == kind]
    return found


def pods(resources: list[Resource]) -> Iterator[Resource]:
    cluster, job = the("RayCluster", resources)["spec"], the("RayJob", resources)["spec"]
    yield from (g["template"] for g in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]))
    yield job["submitterPodTemplate"]


def containers(resources: list[Resource]) -> list[Resource]:
    return [container for pod in pods(resources) for container in pod["spec"]["containers"]]


def test_kuberay_accepts_it(overlay: tuple[str, list[Resource]], crd_validators: dict[Any, Any]) -> None:
    for kind in ("RayCluster", "RayJob"):
        resource = the(kind, overlay[1])
        errors = crd_validators[resource["apiVersion"], kind].iter_errors(resource)
        assert [f"{'.'.join(map(str, e.absolute_path))}: {e.message}" for e in errors] == []


def test_kuberay_would_refuse_what_is_misspelt(
    overlay: tuple[str, list[Resource]], crd_validators: dict[Any, Any]
) -> None:
    cluster = the("RayCluster", overlay[1])
    container = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    broken = {**container, "securityContxt": {}}
    spec = {**cluster["spec"]["headGroupSpec"]["template"]["spec"], "containers": [broken]}
    head = {**cluster["spec"]["headGroupSpec"], "template": {"spec": spec}}
    validator = crd_validators["ray.io/v1", "RayCluster"]
    (error,) = validator.iter_errors({**cluster, "spec": {**cluster["spec"], "headGroupSpec": head}})
    assert "'securityContxt' was unexpected" in error.message


def test_kubernetes_accepts_the_rest(overlay: tuple[str, list[Resource]]) -> None:
    import kubernetes_validate

    own = [r for r in overlay[1] if not r["apiVersion"].startswith("ray.io/")]
    assert {r["kind"] for r in own} == {"Namespace", "PersistentVolumeClaim", "NetworkPolicy"}
    for resource in own:
        kubernetes_validate.validate(resource, "1.33", strict=True)


def test_pods_may_do_nothing_that_they_need_not(overlay: tuple[str, list[Resource]]) -> None:
    for pod in pods(overlay[1]):
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert "hostNetwork" not in pod["spec"]
        assert all("hostPath" not in volume for volume in pod["spec"]["volumes"])
    for container in containers(overlay[1]):
        context = container["securityContext"]
        assert context == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_only_the_autoscaler_gets_a_service_account(overlay: tuple[str, list[Resource]]) -> None:
    name, resources = overlay
    mounted = [pod["spec"]["automountServiceAccountToken"] for pod in pods(resources)]
    assert mounted == [name == "gpu", False, False, False]


def test_every_container_has_limits_and_the_ray_ones_probes(overlay: tuple[str, list[Resource]]) -> None:
    for container in containers(overlay[1]):
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
        if container["name"] != "ray-job-submitter":
            assert {"readinessProbe", "livenessProbe"} <= container.keys()


def test_tokens_are_on_and_every_pod_is_under_the_network_policy(overlay: tuple[str, list[Resource]]) -> None:
    name, resources = overlay
    assert the("RayCluster", resources)["spec"]["authOptions"] == {"mode": "token"}
    policy = the("NetworkPolicy", resources)["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    for pod in pods(resources):
        assert policy["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert all("from" in rule for rule in policy["ingress"])
    outside = [peer["ipBlock"] for rule in policy["egress"] for peer in rule["to"] if "ipBlock" in peer]
    assert outside == ([] if name == "dev" else [{"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}])


def test_samplers_come_with_the_demand_and_the_learner_is_on_demand() -> None:
    done = subprocess.run([*RENDER, KUBERNETES / "gpu"], capture_output=True, text=True, check=True)
    cluster = the("RayCluster", list(yaml.safe_load_all(done.stdout)))["spec"]
    learner, sampler = cluster["workerGroupSpecs"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert (sampler["minReplicas"], sampler["maxReplicas"], learner["minReplicas"]) == (0, 8, 1)
    assert sampler["labels"] == {"raydense/role": "sampler", "ray.io/market-type": "spot"}
    assert learner["labels"] == {"raydense/role": "learner", "ray.io/market-type": "on-demand"}
    for group in (learner, sampler):
        assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_the_jobs_command_starts_or_continues_a_run_that_raydense_accepts(overlay: tuple[str, list[Resource]]) -> None:
    shell, option, script = shlex.split(the("RayJob", overlay[1])["spec"]["entrypoint"])
    assert (shell, option) == ("sh", "-c")
    subprocess.run(["sh", "-n", "-c", script], check=True)
    start = script.split("else exec raydense ")[1].removesuffix("; fi")
    result = CliRunner().invoke(app, [*shlex.split(start), "--dry-run", "--log-format", "json"])
    assert result.exit_code == 0, result.output
    assert script.split()[2:4] == ["-e", "/data/runs/one/config.yaml"]
    assert "exec raydense train --resume /data/runs/one;" in script
