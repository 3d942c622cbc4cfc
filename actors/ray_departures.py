"""Units whose groups lie nowhere but where they were made: what a slow link has still to carry."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.experimental.locations import get_local_object_locations

from actors.dispatch import Member
from raydense.core.types import UnitReport

ARRIVAL_S = 10.0  # of what is on its way with a report that is here; only a lost node keeps it


@dataclass(frozen=True)
class _Unit:
    member: Member
    groups: Sequence[Any]
    until: float  # when it counts as gone, whatever has become of whoever was to fetch it


class Departures:
    """Has groups fetched as they arrive, and counts in each member's `kept` how many of its units have not left yet.

    Args:
        fetch: begins to bring a unit's groups to where they are needed next; does not wait.
        wanted_on: ids of the nodes where they may be needed; what is made there has nowhere to go.
    """

    def __init__(
        self, fetch: Callable[[UnitReport, Sequence[Any]], None], wanted_on: Callable[[], Collection[str]]
    ) -> None:
        self._fetch, self._wanted_on = fetch, wanted_on
        self._units: list[_Unit] = []

    def begin(self, member: Member, report: UnitReport, groups: Sequence[Any], until: float) -> None:
        """Args: groups: references that this process owns, of a call whose report is here."""
        # They come with the report, but each after the other: one that is not here yet would count as gone.
        ray.wait(list(groups), num_returns=len(groups), timeout=ARRIVAL_S, fetch_local=False)
        self._units.append(_Unit(member, groups, until))
        member.kept += 1
        self._fetch(report, groups)

    def look(self, now: float) -> None:
        """Asks nobody: who owns references knows where their values lie."""
        staying = []
        for unit in self._units:
            if now < unit.until and self._is_kept(unit.groups):
                staying.append(unit)
            else:
                unit.member.kept -= 1
        self._units = staying

    def _is_kept(self, groups: Sequence[Any]) -> bool:
        """Small ones travel with the call's reply, and are on no node; nor are those that went with theirs."""
        wanted_on = self._wanted_on()
        places = [place["node_ids"] for place in get_local_object_locations(list(groups)).values()]
        return any(len(nodes) == 1 and nodes[0] not in wanted_on for nodes in places)
