"""Units whose groups lie nowhere but where they were made: what a slow link has still to carry."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.experimental.locations import get_local_object_locations

from actors.dispatch import Member
from raydense.core.types import UnitReport

ARRIVAL_S = 10.0  # within which it is known where a group lies whose report is here; only a lost node keeps it
INLINE_BYTES = 100 * 1024  # of Ray's: what is larger lies on a node


@dataclass(frozen=True)
class _Unit:
    member: Member
    groups: Sequence[Any]
    until: float  # when it counts as gone, whatever has become of whoever was to fetch it
    unknown: set[Any]  # groups of which it is not known yet where they lie
    known_by: float


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
        known_by = time.monotonic() + ARRIVAL_S
        self._units.append(_Unit(member, groups, until, set(groups), known_by))
        member.kept += 1
        self._fetch(report, groups)

    def look(self, now: float) -> None:
        """Asks nobody: who owns references knows where their values lie."""
        staying = []
        for unit in self._units:
            if now < unit.until and self._is_kept(unit, now):
                staying.append(unit)
            else:
                unit.member.kept -= 1
        self._units = staying

    def _is_kept(self, unit: _Unit, now: float) -> bool:
        """Small groups travel with the call's reply, and are on no node; nor are those that went with theirs.

        A group, and where it lies, become known a moment after the report: until then it has not left.
        """
        wanted_on, places = self._wanted_on(), get_local_object_locations(list(unit.groups))
        unit.unknown.difference_update(ref for ref, place in places.items() if _is_known(place))
        on_one = [place["node_ids"][0] for place in places.values() if len(place["node_ids"]) == 1]
        return any(node not in wanted_on for node in on_one) or bool(unit.unknown and now < unit.known_by)


def _is_known(place: Mapping[str, Any]) -> bool:
    size = place["object_size"]
    return bool(place["node_ids"]) or (size is not None and size <= INLINE_BYTES)
