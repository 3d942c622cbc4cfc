"""Learner state on disk: tensors in safetensors, the rest in JSON, a checksummed manifest last."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file as save_tensors

from raydense.core.types import PolicyWeights, Position
from raydense.files.durable import file_checksum, sync

MANIFEST, CONFIG = "manifest.json", "config.yaml"
OPTIONAL = ("references", "clip", "average")  # parts of a learner's state, a file each where there is something
STAGE_WEIGHTS = ("behaviour", "began")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message names the file."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run continues from; all random draws are functions of the config and these counters.

    learner: the learner's `state_dict()`: `step`, `skipped`, `weights` (PolicyWeights), `optimizer`, and where there is
        anything of them `references`, `clip` and `average`.
    position: how far the run has come.
    behaviour: the weights that the work units of the position's stage name; None: θ as it is.
    began: θ when that stage began, which the next stage's units may name; None at a stage boundary.
    metrics_bytes: length of metrics.jsonl then.
    record: the ledger, outstanding units and the segments that hold the buffer; JSON-ready.
    config: of the run, as YAML.
    """

    learner: Mapping[str, Any]
    position: Position
    behaviour: PolicyWeights | None
    metrics_bytes: int
    began: PolicyWeights | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    config: str = ""


def save_checkpoint(directory: Path, checkpoint: Checkpoint) -> None:
    """The directory appears whole or not at all."""
    state = checkpoint.learner
    weights: PolicyWeights = state["weights"]
    moments, optimizer = _split_optimizer(state["optimizer"])
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _save_weights(weights, partial / "lora.safetensors")
    for name in STAGE_WEIGHTS:
        if (known := getattr(checkpoint, name)) is not None:
            _save_weights(known, partial / f"{name}.safetensors")
    (partial / CONFIG).write_text(checkpoint.config, encoding="utf-8")
    save_tensors(moments, partial / "optimizer.safetensors")
    for name in OPTIONAL:
        if state.get(name):
            save_tensors(dict(state[name]), partial / f"{name}.safetensors")
    manifest = {
        "step": state["step"],
        "skipped": state["skipped"],
        "position": asdict(checkpoint.position),
        "metrics_bytes": checkpoint.metrics_bytes,
        "weights": _describe(weights),
        **{name: _describe(getattr(checkpoint, name)) for name in STAGE_WEIGHTS},
        "record": checkpoint.record,
        "optimizer": optimizer,
        "sha256": {path.name: file_checksum(path) for path in sorted(partial.iterdir())},
    }
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for path in partial.iterdir():
        sync(path)
    replaced = directory.with_name(directory.name + ".replaced.partial")
    if directory.exists():  # of the same position, written before a cut
        directory.rename(replaced)
    partial.rename(directory)
    shutil.rmtree(replaced, ignore_errors=True)
    sync(directory.parent)


def load_checkpoint(directory: Path) -> Checkpoint:
    """Reads and verifies what `save_checkpoint` wrote.

    Raises: CheckpointError if it is missing, incomplete or damaged.
    """
    try:
        manifest = json.loads((directory / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory / MANIFEST}: cannot be read ({error})") from None
    for name, expected in manifest["sha256"].items():
        if not (directory / name).is_file() or file_checksum(directory / name) != expected:
            raise CheckpointError(f"{directory / name}: is missing or damaged (its SHA-256 is not the manifest's)")
    moments = load_tensors(directory / "optimizer.safetensors")
    learner = {
        "step": manifest["step"],
        "skipped": manifest["skipped"],
        "weights": _load_weights(directory / "lora.safetensors", manifest["weights"]),
        "optimizer": _join_optimizer(moments, manifest["optimizer"]),
    }
    for name in OPTIONAL:
        file = f"{name}.safetensors"
        learner[name] = load_tensors(directory / file) if file in manifest["sha256"] else {}
    known = {
        name: manifest[name] and _load_weights(directory / f"{name}.safetensors", manifest[name])
        for name in STAGE_WEIGHTS
    }
    return Checkpoint(
        learner=learner,
        position=Position(**manifest["position"]),
        metrics_bytes=manifest["metrics_bytes"],
        record=manifest["record"],
        config=(directory / CONFIG).read_text("utf-8"),
        **known,
    )


def _save_weights(weights: PolicyWeights, path: Path) -> None:
    save_arrays({name: np.ascontiguousarray(array) for name, array in sorted(weights.tensors.items())}, path)


def _load_weights(path: Path, description: Mapping[str, Any]) -> PolicyWeights:
    return PolicyWeights(description["version"], load_arrays(path), description["checksum"])


def _describe(weights: PolicyWeights | None) -> dict[str, Any] | None:
    return {"version": weights.version, "checksum": weights.checksum} if weights else None


def _split_optimizer(state: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], list[Any]]:
    moments = {f"{i}.{k}": torch.as_tensor(v).clone() for i, entry in state["state"].items() for k, v in entry.items()}
    return moments, list(state["param_groups"])


def _join_optimizer(moments: Mapping[str, torch.Tensor], groups: list[Any]) -> dict[str, Any]:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in moments.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    return {"state": state, "param_groups": groups}
