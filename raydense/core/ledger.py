"""Accounts for every work unit of a stage: issued, finished, retried; at the end it balances or the run stops."""

from __future__ import annotations

from collections.abc import Sequence

from raydense.core.types import RESTORED, UnitReport, WorkUnit


class LedgerError(RuntimeError):
    """The account of a stage does not balance; the message says what is missing or too much."""


class Ledger:
    """The account of one stage."""

    def __init__(self, units: Sequence[WorkUnit]) -> None:
        self._issued = {unit.index: unit for unit in units}
        self._finished: dict[int, str] = {}  # unit index → who delivered it

    def finish(self, report: UnitReport) -> None:
        """Enters a delivered unit. Raises: LedgerError if it was never issued, came twice, or lacks groups."""
        index = report.unit.index
        if self._issued.get(index) != report.unit:
            raise LedgerError(f"unit {index} of stage {report.unit.stage} was delivered but never issued")
        if index in self._finished:
            raise LedgerError(f"unit {index} was delivered twice, by {self._finished[index]} and {report.sampler}")
        if tuple(group.index for group in report.groups) != report.unit.group_indices:
            raise LedgerError(f"unit {index} of stage {report.unit.stage} came without all of its groups")
        self._finished[index] = report.sampler

    def __len__(self) -> int:
        """Units finished so far."""
        return len(self._finished)

    def balance(self, groups_held: int) -> dict[str, int]:
        """The stage's totals.

        Args:
            groups_held: how many groups there are for the replay buffer.
        Raises: LedgerError naming units that were issued and never finished, or groups lost on the way.
        """
        if missing := sorted(self._issued.keys() - self._finished.keys()):
            raise LedgerError(f"units {missing} were issued and never finished")
        groups = sum(len(unit.prompts) for unit in self._issued.values())
        if groups_held != groups:
            raise LedgerError(f"{groups} groups were issued, but {groups_held} are held")
        return {
            "issued": len(self._issued),
            "finished": len(self._finished),
            "consumed": len(self._finished),  # all of their groups are in the buffer, or this would have raised
            "restored": sum(who == RESTORED for who in self._finished.values()),
            "groups": groups,
        }
