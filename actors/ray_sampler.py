"""A sampler as a Ray actor: a thin shell, so that everything else is tested without Ray."""

from __future__ import annotations

from collections.abc import Callable

import ray

from raydense.core.interfaces import Sampler
from raydense.core.types import PolicyWeights, Rendered, RenderUnit, TrajectoryGroup, UnitReport, WorkUnit


@ray.remote
class RaySampler:
    """Holds one sampler. Groups are *returned*, so that the caller owns them and they survive this actor."""

    def __init__(self, factory: Callable[[str], Sampler], name: str) -> None:
        self._sampler = factory(name)

    @ray.method(max_task_retries=-1)  # type: ignore[untyped-decorator]  # waits for a restart instead of failing during it
    def ready(self) -> str:
        """The node that this sampler runs on, as soon as its models are loaded."""
        return str(ray.get_runtime_context().get_node_id())

    def sample(self, unit: WorkUnit, weights: PolicyWeights) -> tuple[UnitReport | TrajectoryGroup, ...]:
        """The small report first, then one object a group (`num_returns = 1 + len(unit.prompts)`)."""
        report, groups = self._sampler.sample(unit, weights)
        return report, *groups

    def render(self, unit: RenderUnit, weights: PolicyWeights) -> Rendered:
        return self._sampler.render(unit, weights)
