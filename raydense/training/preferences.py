"""`--preferences FILE`: orders that people gave of stored trajectories, learned in the place of scores.

The file is Parquet, of one of two kinds, told apart by its columns; further columns are not read.

    ranked     stage, group, trajectory, rank      a row a trajectory, of whole groups; 1 is best, ties share one
    pairwise   stage, group, winner, loser[, tie]  a row a judgement; as many of one pair as there were judges

`group` is its index within the stage, and trajectories count from 0 in the order in which a group is stored. Groups
without a row are not learned from. A tie is no order: tied ranks are what equal rewards are (`train.ties`, METHOD §4),
and a pair that is tied is left out. A pair is a group of two; judges who disagree are both learned from, so that the
loss is Bradley and Terry's of the votes.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raydense.config import Config, ConfigError
from raydense.core.interfaces import Learner
from raydense.core.messages import one_line
from raydense.core.types import PolicyWeights, StepMetrics, TrajectoryGroup
from raydense.diffusion.lora import PREFERENCES

RANKED, PAIRWISE = ("stage", "group", "trajectory", "rank"), ("stage", "group", "winner", "loser")


@dataclass(frozen=True)
class Order:
    """Trajectories of a group, and a number each that is higher the better; equal: a tie."""

    trajectories: tuple[int, ...]
    goodness: tuple[float, ...]


@dataclass(frozen=True)
class Preferences:
    """Orders by (stage, group), and how many ties were left out of pairs.

    origin: the file's name and checksum, for what was learned from it.
    """

    orders: Mapping[tuple[int, int], Sequence[Order]]
    ties: int
    origin: Mapping[str, str] = field(default_factory=dict)


def read_preferences(path: Path, config: Config) -> Preferences:
    """Raises: ConfigError naming the file, and the group or column that cannot be used."""
    if config.train.objective == "policy_gradient":
        raise ConfigError(f"--preferences={path} holds orders, but train.objective=policy_gradient learns from scores")
    try:
        content = path.read_bytes()
        table = pq.read_table(pa.BufferReader(content))
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"--preferences={path} cannot be read as Parquet ({one_line(error)})") from None
    names = set(table.column_names)
    ranked = names.issuperset(RANKED)
    if ranked == names.issuperset(PAIRWISE):
        verb = "is of both kinds; keep" if ranked else "needs"
        raise ConfigError(f"--preferences={path} {verb} the columns {', '.join(RANKED)} or {', '.join(PAIRWISE)}")
    wanted = [*(RANKED if ranked else PAIRWISE), *(["tie"] if not ranked and "tie" in names else [])]
    rows = table.select(wanted).to_pylist()
    for number, row in enumerate(rows):
        _check_row(f"--preferences={path}: row {number}", row, config)
    found = _read_ranked(rows, path, config) if ranked else _read_pairs(rows, path, config)
    for stage in range(config.stage.count):
        given = (order for key, orders in found.orders.items() if key[0] == stage for order in orders)
        if all(len(set(order.goodness)) == 1 for order in given):
            raise ConfigError(f"--preferences={path} orders no group of stage {stage}; add some or lower stage.count")
    return replace(
        found, origin={"kind": PREFERENCES, "file": path.name, "sha256": hashlib.sha256(content).hexdigest()}
    )


def _check_row(where: str, row: Mapping[str, Any], config: Config) -> None:
    limits = {"stage": config.stage.count, "group": config.stage.groups}
    limits |= dict.fromkeys(("trajectory", "winner", "loser"), config.sampler.keep)
    for name, value in row.items():
        if name == "tie":
            if value not in (None, False, True):
                raise ConfigError(f"{where}: tie={value!r}; expected true, false or nothing")
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 0 or value >= limits.get(name, 2**31):
            raise ConfigError(
                f"{where}: {name}={value}; expected a whole number from 0 to {limits.get(name, 2**31) - 1}"
            )


def _read_ranked(rows: Sequence[Mapping[str, Any]], path: Path, config: Config) -> Preferences:
    ranks: dict[tuple[int, int], dict[int, float]] = defaultdict(dict)
    for row in rows:
        of_group = ranks[row["stage"], row["group"]]
        if row["trajectory"] in of_group:
            raise ConfigError(
                f"--preferences={path}: stage {row['stage']}, group {row['group']} ranks trajectory "
                f"{row['trajectory']} twice; give each one rank"
            )
        of_group[row["trajectory"]] = -float(row["rank"])
    for (stage, group), of_group in ranks.items():
        if len(of_group) != config.sampler.keep:
            raise ConfigError(
                f"--preferences={path}: stage {stage}, group {group} ranks {len(of_group)} of its "
                f"{config.sampler.keep} trajectories; rank all of them or none"
            )
    whole = tuple(range(config.sampler.keep))
    return Preferences({key: [Order(whole, tuple(by[k] for k in whole))] for key, by in ranks.items()}, 0)


def _read_pairs(rows: Sequence[Mapping[str, Any]], path: Path, config: Config) -> Preferences:
    if config.train.tuple_size != 2:
        raise ConfigError(
            f"--preferences={path} holds pairs, but train.tuple_size={config.train.tuple_size}; set it to 2"
        )
    orders: dict[tuple[int, int], list[Order]] = defaultdict(list)
    for number, row in enumerate(rows):
        if row["winner"] == row["loser"]:
            raise ConfigError(f"--preferences={path}: row {number} compares trajectory {row['winner']} with itself")
        if not row.get("tie"):
            orders[row["stage"], row["group"]].append(Order((row["winner"], row["loser"]), (1.0, 0.0)))
    return Preferences(orders, sum(bool(row.get("tie")) for row in rows))


class PreferenceLearner:
    """`Learner` around another one: of the groups that a stage brings, it learns the ordered ones, by their orders."""

    def __init__(self, inner: Learner[TrajectoryGroup], preferences: Preferences) -> None:
        self._inner, self._orders = inner, preferences.orders

    def begin_stage(self, stage: int, groups: Sequence[TrajectoryGroup]) -> None:
        ordered = [apply(order, g) for g in groups for order in self._orders.get((g.stage, g.index), ())]
        self._inner.begin_stage(stage, ordered)

    def weights(self) -> PolicyWeights:
        return self._inner.weights()

    def averaged(self) -> PolicyWeights | None:
        return self._inner.averaged()

    def train(self, num_steps: int) -> list[StepMetrics]:
        return self._inner.train(num_steps)

    def state_dict(self) -> Mapping[str, Any]:
        return self._inner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._inner.load_state_dict(state)


def apply(order: Order, group: TrajectoryGroup) -> TrajectoryGroup:
    """The ordered trajectories alone, with their goodness as rewards."""
    rows = list(order.trajectories)
    return replace(
        group,
        latents=group.latents if rows == list(range(len(group.latents))) else group.latents[rows],
        log_probs=group.log_probs[rows],
        rewards=np.array(order.goodness, dtype=np.float32),
    )
