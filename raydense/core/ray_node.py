"""The node that a process of a cluster runs on, as a person finds it again."""

from __future__ import annotations

import ray


def node_name() -> str:
    """Its address, and the beginning of the id that `ray list nodes` shows."""
    return f"node {ray.util.get_node_ip_address()} ({ray.get_runtime_context().get_node_id()[:8]})"
