"""How Ray shows and places a run's actors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import uuid4


def actor_options(run: str, role: str, labels: Mapping[str, str]) -> dict[str, Any]:
    """Options of an actor that the dashboard lists as `run/role`, on nodes with these labels.

    The namespace is a new one, so that runs of one name, or a replaced actor, never collide.
    Args: labels: Ray's label selectors, such as {"ray.io/market-type": "!spot"}.
    """
    return {"name": f"{run}/{role}", "namespace": f"raydense-{uuid4().hex}", "label_selector": dict(labels)}
