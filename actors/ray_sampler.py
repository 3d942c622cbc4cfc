"""A sampler as a Ray actor: a thin shell, so that everything else is tested without Ray."""

from __future__ import annotations

from collections.abc import Callable

import ray
from ray.util.metrics import Counter

from actors.dispatch import IN_FLIGHT
from raydense.core import interfaces
from raydense.core.ray_actors import ended_by_device_faults, hide_unreserved_gpus, keep_title, node_name
from raydense.core.types import PolicyWeights, Rendered, RenderUnit, TrajectoryGroup, UnitReport, WorkUnit
from raydense.pipelines.base_model import Checksums


@ray.remote(max_concurrency=IN_FLIGHT)  # one unit is scored while the next is denoised
class Sampler:  # what Ray lists
    """Holds one sampler. Groups are *returned*, so that the caller owns them and they survive this actor.

    Its counters are scraped as ray_raydense_sampler_images_total and ray_raydense_sampler_units_total.
    Args: look: says which files the base model was loaded from.
    """

    def __init__(
        self, factory: Callable[[str], interfaces.Sampler], name: str, run: str, look: Callable[[], Checksums]
    ) -> None:
        hide_unreserved_gpus()
        self._sampler, self._look = factory(name), look
        self._units, self._images = (_counter(what, sampler=name, run=run) for what in ("units", "images"))

    @ray.method(max_task_retries=-1)  # type: ignore[untyped-decorator]  # waits for a restart instead of failing during it
    def ready(self) -> tuple[str, Checksums]:
        """The node that this sampler runs on, and the base model's files there, as soon as its models are loaded."""
        return node_name(), self._look()

    def __repr__(self) -> str:
        """What Ray lists, and begins this process's log with; it asks one that cannot be built, too."""
        return repr(self._sampler) if hasattr(self, "_sampler") else "Sampler"

    @ended_by_device_faults
    def sample(self, unit: WorkUnit, weights: PolicyWeights) -> tuple[UnitReport | TrajectoryGroup, ...]:
        """The small report first, then one object a group (`num_returns = 1 + len(unit.prompts)`)."""
        keep_title("Sampler.sample")
        report, groups = self._sampler.sample(unit, weights)
        self._count(sum(len(group.rewards) for group in report.groups))
        return report, *groups

    @ended_by_device_faults
    def render(self, unit: RenderUnit, weights: PolicyWeights) -> Rendered:
        keep_title("Sampler.render")
        rendered = self._sampler.render(unit, weights)
        self._count(len(rendered.images))
        return rendered

    def _count(self, images: int) -> None:
        self._units.inc()
        if images:  # a counter refuses 0
            self._images.inc(images)


def _counter(what: str, **tags: str) -> Counter:
    counter = Counter(f"raydense_sampler_{what}_total", f"{what} that a sampler has finished", tag_keys=tuple(tags))
    return counter.set_default_tags(tags)
