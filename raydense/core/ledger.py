"""Accounts for every work unit of a stage: issued, finished, retried; at the end it balances or the run stops."""

from __future__ import annotations

from collections.abc import Sequence

from raydense.core.types import UnitReport, WorkUnit


class LedgerError(RuntimeError):
    """The account of a stage does not balance; the message says what is missing or too much."""


class Ledger:
    """The account of one stage."""

    def __init__(self, units: Sequence[WorkUnit]) -> None:
        self._issued = {unit.index: unit for unit in units}
        self._finished: dict[int, str] = {}  # unit index → who delivered it
        self.restored = 0  # of the finished ones, read from segments

    def finish(self, report: UnitReport, restored: bool = False) -> None:
        """Enters a delivered unit. Raises: LedgerError if it was never issued, came twice, or lacks groups."""
        index = report.unit.index
        if self._issued.get(index) != report.unit:
            raise LedgerError(f"unit {index} of stage {report.unit.stage} was delivered but never issued")
        if index in self._finished:
            raise LedgerError(f"unit {index} was delivered twice, by {self._finished[index]} and {report.sampler}")
        if tuple(group.index for group in report.groups) != report.unit.group_indices:
            raise LedgerError(f"unit {index} of stage {report.unit.stage} came without all of its groups")
        self._finished[index] = report.sampler
        self.restored += restored

    def balance(self, retried: int, deaths: int) -> dict[str, int]:
        """The stage's totals. Raises: LedgerError naming units that were issued and never finished."""
        if missing := sorted(self._issued.keys() - self._finished.keys()):
            raise LedgerError(f"units {missing} were issued and never finished")
        groups = sum(len(unit.prompts) for unit in self._issued.values())
        return {
            "issued": len(self._issued),
            "finished": len(self._finished),
            "restored": self.restored,
            "retried": retried,
            "sampler_deaths": deaths,
            "groups": groups,
        }
