"""What a setting meant before it was there: files that earlier code wrote are read as that code would have.

`config.yaml` of a run holds every setting of its day, and the number of its format. A run's file without a number is of
format 1.

To add a setting that changes what a run computes, or to change its default: enter it into `BEFORE` under `FORMAT`, with
the value that says what code did until then, such as `"train.ties": "random"` where ties were always broken at random.
If runs with that number are in people's hands already, raise `FORMAT` by one and enter it there. What decides nothing
about the result (display, limits, places) needs no entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FORMAT = 3
# by the format that brought them: settings as they were before it
BEFORE: Mapping[int, Mapping[str, Any]] = {
    2: {
        "learner.cache_references": True,
        "policy.compile": False,
        "sampler.exact": True,
        "steps.spacing": "leading",
        "train.ties": "random",
    },
    3: {
        "steps.dynamics": "ddim",
    },
}


def written_today(
    values: dict[str, Any], current: int = FORMAT, before: Mapping[int, Mapping[str, Any]] = BEFORE
) -> dict[str, Any]:
    """Plain values without the number of their format, filled in place with what a file of that format leaves unsaid.

    Raises: ValueError if the number is none of ours.
    """
    number = values.pop("format", current)
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= current:
        raise ValueError(
            f"format={number!r}: this raydense reads configurations of format 1 to {current}; install the one "
            "that wrote this"
        )
    for newer in range(number + 1, current + 1):
        for setting, value in before[newer].items():
            _fill_in(values, setting.split("."), value)
    return values


def _fill_in(values: dict[str, Any], keys: list[str], value: Any) -> None:
    """Sets a setting that is not there; what is no section is left for the validation to name."""
    key, *deeper = keys
    if not deeper:
        values.setdefault(key, value)
    elif isinstance(inner := values.setdefault(key, {}), dict):
        _fill_in(inner, deeper, value)
