"""What a run computes, in rows of calls of the network that is trained: by that, runs are compared at equal compute.

A latent under classifier-free guidance is two rows. Counted is what the result rests on: work that was done again after
a fault or a cut is left out, and so are a sampler's few probes of new weights, and what gradient checkpointing repeats.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from raydense.config import Config
from raydense.wiring.chains import judged_by


@dataclass(frozen=True)
class NetworkRows:
    """Of one run. forward: without a backward pass; trained: forward and backward; None: rows that nobody counted."""

    sampler: int  # of what is learned from
    learner_forward: int | None
    learner_trained: int | None
    judging: int  # and grids

    def as_dict(self) -> dict[str, dict[str, int | None]]:
        return {
            "sampler": {"forward": self.sampler},
            "learner": {
                "forward": self.learner_forward,
                "forward_with_gradient": self.learner_trained,
                "backward": self.learner_trained,
            },
            "judging": {"forward": self.judging},
        }


def planned_rows(config: Config, a_latent: int, images: int, transitions: int, judged: int) -> NetworkRows:
    """Before a run, of which the learner's rows are the most there can be: no draw comes twice.

    Args:
        config: resolved. a_latent: rows of a latent, `Family.rows`.
        images, judged: pictures that are learned from, and those that are judged.
        transitions: with a gradient, or noised pictures.
    """
    trained = transitions * (a_latent if config.train.draws_steps else 1)
    return NetworkRows(
        sampler=images * config.steps.count * a_latent,
        learner_forward=trained if config.train.calls_initial else 0,
        learner_trained=trained,
        judging=_judging(config, a_latent, judged),
    )


def computed_rows(config: Config, a_latent: int, rows: Iterable[Mapping[str, Any]], judged: int) -> NetworkRows:
    """After a run. Args: rows: of its metrics; the rest as of `planned_rows`."""
    groups, counts = 0, list[Mapping[str, int] | None]()
    for row in rows:
        if row["kind"] == "stage":
            groups += row["replay/groups"]
        elif row["kind"] == "step":
            counts.append(row.get("network_rows"))
    known = [count for count in counts if count is not None]
    whole = len(known) == len(counts)  # a run of earlier code may have begun without
    return NetworkRows(
        sampler=groups * config.sampler.trajectories * config.steps.count * a_latent,
        learner_forward=sum(count["forward"] for count in known) if whole else None,
        learner_trained=sum(count["trained"] for count in known) if whole else None,
        judging=_judging(config, a_latent, judged),
    )


def _judging(config: Config, a_latent: int, images: int) -> int:
    return images * judged_by(config).count * a_latent
