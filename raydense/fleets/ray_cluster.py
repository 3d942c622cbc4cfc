"""Reaching a Ray cluster, or starting a private one, and whether a run fits on it; each failure is one line."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import grpc
import psutil
import ray
from ray.exceptions import AuthenticationError
from ray.job_config import JobConfig

from raydense.config import Config, ConfigError
from raydense.core.messages import one_line
from raydense.core.waiting import share_the_machine
from raydense.fleets.ray_job import tell_job
from raydense.planning.placement import Placement, of_workers

NAMESPACE = "raydense"
TESTED_RAY = "2.60.0"
GB = 1e9
PROBE_S = 5.0  # for a cluster's head to take a connection
TOKEN_ADVICE = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or put the cluster's token into ~/.ray/auth_token"


@contextmanager
def ray_session(about: Mapping[str, str] = {}) -> Iterator[None]:  # never changed
    """Joins the cluster that RAY_ADDRESS names (a job has it), else starts a private one; leaves it at the end.

    Nothing else is looked for: a file under /tmp that names a cluster does not make us join it. The private one
    listens on loopback only, and no process of it outlives the session. Joining one without token authentication is
    warned of.
    Args: about: the job, for Ray's list of jobs, which shows its `job_name`.
    Raises: ConfigError if the cluster cannot be reached, refuses us, or is of another version.
    """
    if ray.is_initialized():
        yield
        return
    here = psutil.Process()
    before = set(here.children())
    _connect(about)
    servers = set(here.children()) - before  # of a private Ray
    try:
        tell_job(about)
        yield
    finally:
        started = {process for server in servers for process in _with_descendants(server)}
        ray.shutdown()
        for process in started:  # parts of the dashboard that a browser asked stay alone otherwise
            with suppress(psutil.NoSuchProcess):
                process.kill()


def _with_descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _connect(about: Mapping[str, str]) -> None:
    address = os.environ.get("RAY_ADDRESS", "")
    _probe(address)
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # of calls that the fleet has given to others
    where = f"RAY_ADDRESS={address}" if address else "Ray"
    options: dict[str, Any] = {
        "namespace": NAMESPACE,
        "logging_level": logging.ERROR,
        "log_to_driver": False,
        "job_config": JobConfig(metadata=dict(about)),
    }
    try:
        if address in ("", "local"):
            share_the_machine()
            with _loopback_only(), starting_here():
                ray.init(address="local", **options)
        else:
            _probe_token(address)
            _warn_if_open(address, ray.init(address=address, **options).dashboard_url)
    except AuthenticationError as error:
        raise ConfigError(f"{where}: {str(error).split('.')[0]}; {TOKEN_ADVICE}") from None
    except ConnectionError as error:
        if not address:
            raise
        raise ConfigError(
            f"{where}: a server answers, but the cluster cannot be joined ({one_line(error)}); if it uses tokens, "
            f"{TOKEN_ADVICE}"
        ) from None
    except RuntimeError as error:
        if "Version mismatch" not in str(error):
            raise
        raise ConfigError(f"{where}: {one_line(error)}; install the cluster's versions of Python and Ray") from None


@contextmanager
def starting_here() -> Iterator[None]:
    """Around what starts a cluster on this machine: its sockets and logs lie in a temporary directory.

    Raises: ConfigError if that cannot be used, as where a scheduler gave a long one.
    """
    try:
        yield
    except ConnectionError:
        raise
    except OSError as error:
        name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), None)
        place = f"{name}={os.environ[name]}" if name else "/tmp"
        reason = "too long for the paths of its sockets" if "AF_UNIX" in str(error) else error.strerror or str(error)
        raise ConfigError(
            f"Ray cannot start in {place} ({reason}); set RAY_TMPDIR to a short directory that can be written, such as "
            "/tmp"
        ) from None


@contextmanager
def _loopback_only() -> Iterator[None]:
    """Ray takes a loopback address only where it has no cluster support, as on macOS; its ports then bind to it.

    It decides by a private constant, which is flipped for as long as `ray.init` takes. A Ray without it is refused
    here, before anything listens; a Ray that no longer heeds it is caught by
    `tests/deploy/test_watched_run.py::test_nothing_listens_beyond_loopback`.
    Raises: ConfigError.
    """
    try:
        from ray._private import ray_constants

        before = ray_constants.ENABLE_RAY_CLUSTER
    except (ImportError, AttributeError):
        raise ConfigError(
            f"Ray {ray.__version__} has no ray_constants.ENABLE_RAY_CLUSTER, and a private cluster would listen beyond "
            f"this machine; install ray=={TESTED_RAY}, or start a cluster yourself and set RAY_ADDRESS"
        ) from None
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _warn_if_open(address: str, dashboard: str | None) -> None:
    """Says on stderr that everybody who reaches the cluster can run code on it, if that is so."""
    if _authentication_mode(dashboard) == "disabled":
        print(
            f"raydense: WARNING: the Ray cluster at {address} has no token authentication: everybody who reaches its "
            "ports can run code on every node. Start it with RAY_AUTH_MODE=token (see deploy/SECURITY.md)",
            file=sys.stderr,
            flush=True,
        )


def _authentication_mode(dashboard: str | None) -> str:
    """`token` or `disabled`, as the cluster's dashboard says without a token; else as this process is set."""
    try:
        with urlopen(f"http://{dashboard}/api/authentication_mode", timeout=PROBE_S) as answer:
            return str(json.load(answer)["authentication_mode"])
    except (OSError, ValueError, KeyError):
        return "token" if os.environ.get("RAY_AUTH_MODE") == "token" else "disabled"


def _probe(address: str) -> None:
    """Ray itself waits long for a head that is not there. Raises: ConfigError."""
    if address in ("", "auto", "local"):
        return
    parts = urlsplit(address if "//" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = parts.hostname, None
    if not host or port is None:
        raise ConfigError(f"RAY_ADDRESS={address} is no address; expected HOST:PORT, or unset it for a private cluster")
    try:
        socket.create_connection((host, port), timeout=PROBE_S).close()
    except OSError as error:
        raise ConfigError(
            f"RAY_ADDRESS={address}: nothing answers there ({error}); correct it, start the cluster, or unset it for a "
            "private one"
        ) from None


def _probe_token(address: str) -> None:
    """Asks a head for what every program asks first, with the token that Ray would take; without a right one Ray itself
    tries twenty times, and logs each. Raises: ConfigError if we are refused for it.
    """
    if address in ("", "auto", "local") or "//" in address:
        return
    try:
        from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
    except ImportError:  # of another Ray, which then tells for itself
        return
    headers = AuthenticationTokenLoader.instance().get_token_for_http_header()  # empty without RAY_AUTH_MODE=token
    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")
        try:
            ask(b"", timeout=PROBE_S, metadata=tuple(headers.items()))
        except grpc.RpcError as error:  # any other one is for Ray to tell
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                reason = "its token is another one" if headers else "it asks for a token"
                raise ConfigError(f"RAY_ADDRESS={address}: the cluster refuses us: {reason}; {TOKEN_ADVICE}") from None


def check_resources(config: Config, placement: Placement) -> None:
    """Raises: ConfigError if the cluster as it is now cannot place the learner and `minimum` samplers, each on a node.

    The samplers beyond these may wait for nodes that are yet to join; with `samplers.autoscale`, so may all.
    """
    if config.samplers.autoscale:
        return
    fleet, learner, count = config.samplers, config.learner, placement.minimum
    asked = "samplers.count" if fleet.min is None and fleet.max is None else "samplers.min"
    total = ray.cluster_resources()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    for resource, key, each, own, unit in (
        ("CPU", "num_cpus", fleet.num_cpus, learner.num_cpus, 1.0),
        ("GPU", "num_gpus", placement.sampler_gpus, placement.learner_gpus, 1.0),
        ("memory", "memory_gb", fleet.memory_gb, learner.memory_gb, GB),
    ):
        noun = "GB of memory" if resource == "memory" else f"{resource}s"
        needed, available = count * each + learner.num_workers * own, total.get(resource, 0.0) / unit
        if needed > available:
            raise ConfigError(
                f"{asked}={count} with samplers.{key}={each:g} and learner.{key}={own:g}{of_workers(config)} need "
                f"{needed:g} {noun}, but the cluster has {available:.4g}; lower them or add nodes, or set "
                "samplers.autoscale=true if it grows"
            )
        for role, wanted, labels in (("samplers", each, fleet.labels), ("learner", own, learner.labels)):
            if role == "samplers" and count == 0:
                continue
            matching = [node for node in nodes if _matches(node.get("Labels", {}), labels)]
            if not matching:
                raise ConfigError(f"{role}.labels={labels} match no node; correct them or add a node with such labels")
            largest = max(node["Resources"].get(resource, 0.0) / unit for node in matching)
            if wanted > largest:
                raise ConfigError(
                    f"{role}.{key}={wanted:g}: the largest node has {largest:.4g} {noun}; lower it or add a node"
                )


def _matches(labels: Mapping[str, str], selectors: Mapping[str, str]) -> bool:
    """Whether a node with these labels is one that Ray would take for the selectors."""
    for key, selector in selectors.items():
        values = selector.removeprefix("!").removeprefix("in(").removesuffix(")").replace(" ", "").split(",")
        if (labels.get(key) in values) == selector.startswith("!"):
            return False
    return True
