"""A cluster that cannot be reached or cannot hold the actors is told in one line, at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import ray

from raydense.checks.ray_chaos import chaos_cluster
from raydense.config import Config, ConfigError
from raydense.core.waiting import SPINS
from raydense.fleets.ray_cluster import TESTED_RAY, _matches, check_resources, ray_session
from raydense.planning.placement import Placement, place

pytestmark = pytest.mark.ray
TOKEN = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "RAY_ADDRESS=127.0.0.1:1: nothing answers there"),
        ("ray://127.0.0.1:1", "nothing answers there"),
        ("no-such-host.invalid:6379", "nothing answers there"),
        ("localhost", "RAY_ADDRESS=localhost is no address; expected HOST:PORT"),
        ("localhost:port", "RAY_ADDRESS=localhost:port is no address"),
    ],
)
def test_an_address_where_nothing_is(address: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    started = time.monotonic()
    with pytest.raises(ConfigError) as caught, ray_session():
        pass
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ray.exceptions.AuthenticationError("Token authentication is on but no token was found. See"),
            "RAY_AUTH_TOKEN",
        ),
        (ConnectionError("Failed to connect\nto it"), "the cluster cannot be joined (Failed to connect to it)"),
        (RuntimeError("Version mismatch: The cluster was\n started with: Ray 2.9"), "install the cluster's versions"),
    ],
)
def test_a_cluster_that_refuses_us(error: Exception, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise error

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    for probe in ("_probe", "_probe_token"):
        monkeypatch.setattr(f"raydense.fleets.ray_cluster.{probe}", lambda address: None)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(ConfigError, match=r"^RAY_ADDRESS=10.0.0.1:6379: ") as caught, ray_session():
        pass
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def head() -> Iterator[str]:
    """The address of a server that takes only calls with one token, as a head does."""

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        if ("authorization", f"Bearer {TOKEN}") not in context.invocation_metadata():
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return b""

    class Anything(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.server(ThreadPoolExecutor(1), handlers=[Anything()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


@pytest.mark.parametrize(
    ("ours", "said"), [(None, "it asks for a token"), ("ab" * 32, "its token is another one"), (TOKEN, None)]
)
def test_a_token_is_asked_for_before_ray_asks_twenty_times(
    warm_python: Path, head: str, ours: str | None, said: str | None, tmp_path: Path
) -> None:
    program = "import sys; from raydense.fleets.ray_cluster import _probe_token; _probe_token(sys.argv[1])"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment["HOME"] = str(tmp_path)
    if ours:
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": ours}
    command = [warm_python, "-c", program, head]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == ""
    if said is None:
        assert (done.returncode, done.stderr) == (0, "")
    else:
        last = done.stderr.splitlines()[-1]
        assert f"RAY_ADDRESS={head}: the cluster refuses us: {said}; set RAY_AUTH_MODE=token" in last


def test_an_error_of_ray_itself_is_no_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise RuntimeError("raylet died")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(RuntimeError, match="raylet died"), ray_session():
        pass


@pytest.mark.parametrize("gone", ["ray._private.ray_constants.ENABLE_RAY_CLUSTER", "ray._private.ray_constants"])
def test_a_ray_that_would_listen_beyond_this_machine(gone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("it was started"))
    monkeypatch.setattr(ray, "__version__", "9.9.0")
    monkeypatch.delattr(gone)
    if gone.endswith("ray_constants"):
        monkeypatch.setitem(sys.modules, gone, None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError) as caught, ray_session():
        pass
    assert str(caught.value) == (
        "Ray 9.9.0 has no ray_constants.ENABLE_RAY_CLUSTER, and a private cluster would listen beyond this machine; "
        f"install ray=={TESTED_RAY}, or start a cluster yourself and set RAY_ADDRESS"
    )


def test_the_ray_that_is_advised_is_the_one_of_the_images() -> None:
    constraints = Path(__file__).resolve().parents[3] / "deploy" / "constraints.txt"
    assert f"ray=={TESTED_RAY}" in constraints.read_text("utf-8").splitlines()


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
@pytest.mark.parametrize(
    ("directory", "said"),
    [
        ("{tmp}/" + "x" * 80, "too long for the paths of its sockets"),
        ("/proc/none", "No such file or directory"),
        ("/dev/null", "Not a directory"),
    ],
)
def test_a_temporary_directory_that_ray_cannot_use(
    variable: str, directory: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(variable, directory := directory.format(tmp=tmp_path))
    with pytest.raises(ConfigError) as caught, chaos_cluster():
        pass
    assert str(caught.value) == (
        f"Ray cannot start in {variable}={directory} ({said}); set RAY_TMPDIR to a short directory that can be "
        "written, such as /tmp"
    )


def test_a_run_does_not_start_in_such_a_directory(warm_python: Path, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [warm_python, "-m", "raydense.cli", "train", "--out", str(tmp_path / "run")]
    environment["RAY_TMPDIR"] = str(tmp_path / ("x" * 80))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("raydense: Ray cannot start in RAY_TMPDIR=")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


NICENESS = """
import os, ray
from raydense.fleets.ray_cluster import ray_session

def look():
    return os.nice(0), os.environ.get("GOMP_SPINCOUNT")

with ray_session():
    print(*ray.get(ray.remote(look).remote()))
"""


@pytest.mark.slow
def test_workers_of_a_private_session_run_at_our_priority_without_the_command_line_too(warm_python: Path) -> None:
    """plain: `test_only_what_is_not_set_is_set`, of what is set for them and what stays."""
    unset = ("RAY_ADDRESS", "RAY_worker_niceness", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {key: value for key, value in os.environ.items() if key not in unset}
    done = subprocess.run([warm_python, "-c", NICENESS], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(os.nice(0)), SPINS]


@pytest.mark.parametrize(
    ("placement", "num_cpus", "said"),
    [
        (Placement(2, 2, 1.0, 0.0), 0.5, "need 2 GPUs, but the cluster has 1; lower them or add nodes"),
        (Placement(9, 9, 0.0, 0.0), 1.0, "need 10 CPUs, but the cluster has 8; lower them or add nodes"),
        (Placement(1, 1, 0.0, 0.0), 5.0, "samplers.num_cpus=5: the largest node has 4 CPUs; lower it or add a node"),
    ],
)
def test_actors_without_a_place(
    small_config: Callable[..., Config],
    placement: Placement,
    num_cpus: float,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0}}, {"Alive": True, "Resources": {"CPU": 4.0}}]
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    with pytest.raises(ConfigError) as caught:
        check_resources(small_config(samplers={"num_cpus": num_cpus}), placement)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("samplers", "learner", "said"),
    [
        ({"count": 2, "memory_gb": 20}, {"memory_gb": 30}, "samplers.count=2 with samplers.memory_gb=20 and "
         "learner.memory_gb=30 need 70 GB of memory, but the cluster has 64; lower them or add nodes"),
        ({"count": 1}, {"memory_gb": 40}, "learner.memory_gb=40: the largest node has 32 GB of memory; lower it"),
        ({"count": None, "min": 3, "max": 9, "num_cpus": 3}, {}, "samplers.min=3 with samplers.num_cpus=3 and "
         "learner.num_cpus=1 need 10 CPUs, but the cluster has 8"),
    ],
)  # fmt: skip
def test_memory_and_the_smallest_fleet_must_have_a_place_now(
    small_config: Callable[..., Config],
    samplers: dict[str, Any],
    learner: dict[str, Any],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": 4.0, "memory": 32e9}} for _ in range(2)]
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "memory": 64e9})
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    config = small_config(samplers={"num_cpus": 0.5, **samplers}, learner=learner)
    with pytest.raises(ConfigError) as caught:
        check_resources(config, place(config, 0))
    assert said in str(caught.value)


def test_samplers_beyond_the_smallest_fleet_may_wait_for_nodes(
    small_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 4.0}}])
    config = small_config(samplers={"count": None, "min": 1, "max": 64, "num_cpus": 2})
    check_resources(config, place(config, 0))
    assert (place(config, 0).minimum, place(config, 0).samplers) == (1, 64)


SPOT = {"ray.io/market-type": "spot", "raydense/role": "sampler"}


@pytest.mark.parametrize(
    ("selectors", "matched"),
    [
        ({}, True),
        ({"ray.io/market-type": "spot"}, True),
        ({"ray.io/market-type": "!spot"}, False),
        ({"raydense/role": "in(learner, sampler)"}, True),
        ({"raydense/role": "!in(learner,head)"}, True),
        ({"raydense/role": "sampler", "zone": "a"}, False),
        ({"zone": "!a"}, True),
    ],
)
def test_a_node_matches_as_ray_would_match_it(selectors: dict[str, str], matched: bool) -> None:
    assert _matches(SPOT, selectors) is matched


def test_labels_that_no_node_has(small_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0})
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8.0}, "Labels": SPOT}])
    with pytest.raises(ConfigError, match=r"learner.labels={'ray.io/market-type': '!spot'} match no node"):
        check_resources(small_config(), Placement(1, 1, 0.0, 0.0))


def test_a_cluster_that_grows_refuses_nothing_that_may_come(
    small_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {})
    monkeypatch.setattr(ray, "nodes", lambda: [])
    samplers = {"autoscale": True, "count": 8, "num_gpus": 1}
    check_resources(small_config(samplers=samplers, learner={"num_gpus": 1}), Placement(8, 8, 1.0, 1.0))


def test_nothing_is_counted_from_nodes_that_are_still_to_come(small_config: Callable[..., Config]) -> None:
    with pytest.raises(ValueError, match=r"set samplers.max, samplers.num_gpus and learner.num_gpus too"):
        small_config(samplers={"autoscale": True})
