"""What samplers and learner have in common as Ray actors: how they are shown and placed, and how they end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar
from uuid import uuid4

import ray
from ray.exceptions import LocalRayletDiedError, NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError

P = ParamSpec("P")
R = TypeVar("R")
DEATHS = (RayActorError, OutOfMemoryError, NodeDiedError, WorkerCrashedError, LocalRayletDiedError)  # of a process


def actor_options(run: str, role: str, labels: Mapping[str, str]) -> dict[str, Any]:
    """Options of an actor that the dashboard lists as `run/role`, on nodes with these labels.

    The namespace is a new one, so that runs of one name, or a replaced actor, never collide.
    Args: labels: Ray's label selectors, such as {"ray.io/market-type": "!spot"}.
    """
    return {"name": f"{run}/{role}", "namespace": f"raydense-{uuid4().hex}", "label_selector": dict(labels)}


def keep_title(method: str) -> None:
    """Calls this process `ray::method` again, where Ray has just called it after its task.

    Each name of a process begins eight series in Ray's metrics, and a task's name is like no other's.
    """
    ray._raylet.setproctitle(f"ray::{method}")


def hide_unreserved_gpus() -> None:
    """For an actor that reserves no GPU: Ray leaves all of its node's visible, and `auto` would take the first.

    Call it before CUDA is used in this process.
    """
    if not ray.get_runtime_context().get_accelerator_ids().get("GPU"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def ended_by_device_faults(method: Callable[P, R]) -> Callable[P, R]:
    """For an actor's methods: a CUDA error, after which nothing more can be computed in the process, ends it.

    Another takes its place. Memory that ran out is none of these: it is an exception like others. What fails on a GPU
    is found out by whatever looks at it next, so that this belongs around every method.
    """

    @wraps(method)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except RuntimeError as error:
            if "CUDA error" not in str(error):
                raise
            print(f"raydense: this process ends: {error}", file=sys.stderr, flush=True)
            os._exit(1)

    return guarded


def node_name() -> str:
    """The node that this process runs on as a person finds it again: its address, and the beginning of the id that
    `ray list nodes` shows."""
    return f"node {ray.util.get_node_ip_address()} ({ray.get_runtime_context().get_node_id()[:8]})"
