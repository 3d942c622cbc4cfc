"""One stage's groups on their way: checked, entered into the ledger, put in order, and sampled again when lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

from raydense.config import ConfigError
from raydense.core.interfaces import Fleet
from raydense.core.ledger import Ledger
from raydense.core.types import RESTORED, PolicyWeights, UnitReport, WorkUnit

Handle = TypeVar("Handle")


class SerialCollection(Generic[Handle]):
    """`Collection` of results that are made when they are asked for, in this process."""

    def __init__(self, results: Iterable[tuple[UnitReport, Sequence[Handle]]]) -> None:
        self._results = iter(results)

    def __iter__(self) -> SerialCollection[Handle]:
        return self

    def __next__(self) -> tuple[UnitReport, Sequence[Handle]]:
        return next(self._results)

    def ready(self) -> bool:
        return False

    def close(self) -> None:
        self._results = iter(())


class StageCollection(Generic[Handle]):
    """The units of one stage, all of one weights version.

    Args:
        weights: that the units name; every group must carry their stamp.
        tell: of each arrival, with how many have come of how many.
        max_bytes: that the groups in memory may take; None: no limit.
    """

    def __init__(
        self,
        fleet: Fleet[Handle],
        units: Sequence[WorkUnit],
        weights: PolicyWeights,
        tell: Callable[[UnitReport, int, int], None],
        max_bytes: int | None,
    ) -> None:
        self._fleet, self._units, self._weights, self._tell = fleet, units, weights, tell
        self._max_bytes = max_bytes
        self._ledger = Ledger(units)
        self._arrivals: dict[int, tuple[UnitReport, Sequence[Handle]]] = {}
        fleet.broadcast(weights)
        self._coming = fleet.collect(units)

    def poll(self) -> None:
        """Enters what has arrived, without waiting."""
        while self._coming.ready():
            self._enter(*next(self._coming))

    def finish(self) -> None:
        """Waits for the rest. Raises: LedgerError if the account does not balance then."""
        for report, handles in self._coming:
            self._enter(report, handles)
        self._ledger.balance(len(self.handles))

    def recover(self) -> None:
        """Collects again, from disk or from samplers, the units whose groups are gone."""
        gone = [index for index in sorted(self._arrivals) if self._fleet.is_lost(self._arrivals[index][1])]
        if not gone:
            raise RuntimeError("the learner cannot read groups that the driver still can")
        self._fleet.broadcast(self._weights)
        self._ledger.reissue(gone)
        self._coming = self._fleet.collect([unit for unit in self._units if unit.index in gone])
        self.finish()

    def close(self) -> None:
        self._coming.close()

    @property
    def account(self) -> Mapping[str, int]:
        return self._ledger.account

    @property
    def outstanding(self) -> list[int]:
        """Indices of units that have not arrived."""
        return [unit.index for unit in self._units if unit.index not in self._arrivals]

    @property
    def reports(self) -> list[UnitReport]:
        """In the order of the units: that of arrival has no meaning."""
        return [self._arrivals[index][0] for index in sorted(self._arrivals)]

    @property
    def handles(self) -> list[Handle]:
        """Of the groups, in the order of the units."""
        return [handle for index in sorted(self._arrivals) for handle in self._arrivals[index][1]]

    def _enter(self, report: UnitReport, handles: Sequence[Handle]) -> None:
        if report.sampler != RESTORED:  # whoever restores a unit decides which weights it may be of
            self._check_stamps(report)
        self._check_capacity(report)
        self._ledger.finish(report)
        self._arrivals[report.unit.index] = report, handles
        self._tell(report, len(self._ledger), len(self._units))

    def _check_stamps(self, report: UnitReport) -> None:
        expected = (self._weights.version, self._weights.checksum)
        for group in report.groups:
            if (group.weights_version, group.weights_checksum) != expected:
                raise RuntimeError(
                    f"group {group.index} of stage {group.stage} was sampled with weights version "
                    f"{group.weights_version} ({group.weights_checksum}), not {expected[0]} ({expected[1]})"
                )

    def _check_capacity(self, report: UnitReport) -> None:
        """The first unit tells what a stage will take; better then than when the store is full."""
        groups = sum(len(unit.prompts) for unit in self._units)
        expected = groups * max(group.nbytes for group in report.groups)
        if self._max_bytes is not None and expected > self._max_bytes:
            raise ConfigError(
                f"replay.max_bytes={self._max_bytes} is less than the {expected} bytes of a stage's {groups} groups; "
                "raise it or lower stage.groups or sampler.keep"
            )
