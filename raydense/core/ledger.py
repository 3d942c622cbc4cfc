"""Accounts for every work unit of a stage: issued, finished, lost; at the end it balances or the run stops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raydense.core.types import RESTORED, UnitReport, WorkUnit


class LedgerError(RuntimeError):
    """The account of a stage does not balance; the message says what is missing or too much."""


class Ledger:
    """The account of one stage."""

    def __init__(self, units: Sequence[WorkUnit]) -> None:
        self._issued = {unit.index: unit for unit in units}
        self._finished: dict[int, str] = {}  # unit index → who delivered it
        self._reissued = 0

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

    def reissue(self, indices: Sequence[int]) -> None:
        """Units whose groups were lost after they had been delivered. Raises: LedgerError for one that never was."""
        for index in indices:
            if index not in self._finished:
                raise LedgerError(f"unit {index} was lost but never delivered")
            del self._finished[index]
        self._reissued += len(indices)

    def __len__(self) -> int:
        """Units finished so far."""
        return len(self._finished)

    def balance(self, groups_held: int) -> None:
        """Raises: LedgerError naming units that were issued and never finished, or groups lost on the way.

        Args: groups_held: how many groups there are for the replay buffer.
        """
        if missing := sorted(self._issued.keys() - self._finished.keys()):
            raise LedgerError(f"units {missing} were issued and never finished")
        groups = sum(len(unit.prompts) for unit in self._issued.values())
        if groups_held != groups:
            raise LedgerError(f"{groups} groups were issued, but {groups_held} are held")

    @property
    def account(self) -> Mapping[str, int]:
        """The stage's totals so far; once it balances, every finished unit's groups are in the buffer: consumed."""
        return {
            "issued": len(self._issued),
            "finished": len(self._finished),
            "consumed": len(self._finished) if len(self._finished) == len(self._issued) else 0,
            "restored": sum(who == RESTORED for who in self._finished.values()),
            "reissued": self._reissued,
            "groups": sum(len(self._issued[index].prompts) for index in self._finished),
        }
