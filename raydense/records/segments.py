"""Finished work units on disk: one Arrow IPC file a unit, a row a group, each row with its checksum.

A file appears whole or not at all, is never appended to, and is all that a resumed or an offline run reads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydense.core.types import GroupMeta, TrajectoryGroup, UnitReport, WorkUnit

ARRAYS = ("latents", "log_probs", "rewards")  # of a group; further columns are its conditioning's
AUTOMATIC_BYTES = 2**20  # of a group, from which on it is worth a file
CHECKSUM = "sha256"
FIRST_STEP = "first_step"  # in the metadata, where it is not 0


class SegmentError(RuntimeError):
    """A segment that cannot be used; the message names the file."""


def is_written(group_bytes: int, wanted: bool | None) -> bool:
    """Whether groups of this size go into segments. Args: wanted: None: where one has at least `AUTOMATIC_BYTES`."""
    return group_bytes >= AUTOMATIC_BYTES if wanted is None else wanted


def segment_path(root: Path, stage: int, unit: int) -> Path:
    return root / f"stage-{stage:04d}" / f"unit-{unit:06d}.arrow"


def write_segment(path: Path, report: UnitReport, groups: Sequence[TrajectoryGroup]) -> None:
    """Writes the groups of one unit, and the report that came with them."""
    names = (*groups[0].conditioning, *ARRAYS)
    columns: dict[str, Any] = {name: _tensor_column([_arrays(g)[name] for g in groups]) for name in names}
    columns[CHECKSUM] = pa.array([_checksum(g) for g in groups])
    told = {"report": json.dumps(asdict(report))}
    if groups[0].first_step:
        told[FIRST_STEP] = str(groups[0].first_step)
    table = pa.table(columns).replace_schema_metadata(told)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with pa.OSFile(str(partial), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    partial.rename(path)


def read_segment(path: Path) -> tuple[UnitReport, list[TrajectoryGroup]]:
    """Reads and verifies what `write_segment` wrote; arrays are views of the mapped file.

    Raises: SegmentError if the file is missing, cut short or damaged.
    """
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all().combine_chunks()
        report = _parse_report(json.loads(table.schema.metadata[b"report"]))
        first_step = int(table.schema.metadata.get(FIRST_STEP.encode(), 0))
        names = [name for name in table.column_names if name != CHECKSUM]
        arrays = {name: table.column(name).chunk(0).to_numpy_ndarray() for name in names}
        given = [name for name in names if name not in ARRAYS]
    except (OSError, pa.ArrowInvalid, KeyError, ValueError) as error:
        raise SegmentError(f"{path}: cannot be read ({error})") from None
    groups = [
        TrajectoryGroup(
            stage=meta.stage,
            index=meta.index,
            prompt=meta.prompt,
            weights_version=meta.weights_version,
            weights_checksum=meta.weights_checksum,
            first_step=first_step,
            conditioning={name: arrays[name][row] for name in given},
            **{name: arrays[name][row] for name in ARRAYS},
        )
        for row, meta in enumerate(report.groups)
    ]
    for group, expected in zip(groups, table.column(CHECKSUM).to_pylist(), strict=True):
        if _checksum(group) != expected:
            raise SegmentError(f"{path}: group {group.index} is damaged (its SHA-256 is not the recorded one)")
    return report, groups


def _tensor_column(arrays: Sequence[np.ndarray]) -> pa.Array:
    return pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack(arrays))


def _checksum(group: TrajectoryGroup) -> str:
    digest = hashlib.sha256(f"{group.stage}/{group.index}/{group.prompt}/{group.weights_checksum}".encode())
    for array in _arrays(group).values():
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _arrays(group: TrajectoryGroup) -> dict[str, NDArray[Any]]:
    return {**group.conditioning, **{name: getattr(group, name) for name in ARRAYS}}


def _parse_report(values: dict[str, Any]) -> UnitReport:
    def freeze(value: Any) -> Any:
        return tuple(freeze(v) for v in value) if isinstance(value, list) else value

    def build(cls: Any, fields: dict[str, Any]) -> Any:
        return cls(**{name: freeze(value) for name, value in fields.items()})

    metas = []
    for fields in values["groups"]:
        monitors = {name: freeze(scores) for name, scores in fields["monitors"].items()}
        metas.append(build(GroupMeta, {**fields, "monitors": monitors}))
    unit, failures = build(WorkUnit, values["unit"]), values.get("failures", {})
    return UnitReport(unit, tuple(metas), values["seconds"], values["sampler"], failures)
