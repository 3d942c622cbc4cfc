"""Learner state on disk: tensors in safetensors, the rest in JSON, a checksummed manifest last."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file as save_tensors

from raydense.core.types import PolicyWeights

MANIFEST = "manifest.json"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message names the file."""


def save_checkpoint(directory: Path, state: Mapping[str, Any]) -> None:
    """Writes a learner's `state_dict()`; the directory appears whole or not at all.

    Args:
        state: `step`, `weights` (PolicyWeights) and `optimizer` (a torch optimizer's state dict).
    """
    weights: PolicyWeights = state["weights"]
    moments, optimizer = _split_optimizer(state["optimizer"])
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_arrays({k: np.ascontiguousarray(v) for k, v in sorted(weights.tensors.items())}, partial / "lora.safetensors")
    save_tensors(moments, partial / "optimizer.safetensors")
    manifest = {
        "step": state["step"],
        "weights_version": weights.version,
        "weights_checksum": weights.checksum,
        "optimizer": optimizer,
        "sha256": {path.name: _sha256(path) for path in sorted(partial.iterdir())},
    }
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for path in partial.iterdir():
        _sync(path)
    partial.rename(directory)
    _sync(directory.parent)


def load_checkpoint(directory: Path) -> dict[str, Any]:
    """Reads what `save_checkpoint` wrote. Raises: CheckpointError if it is missing, incomplete or damaged."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory / MANIFEST}: cannot be read ({error})") from None
    for name, expected in manifest["sha256"].items():
        if not (directory / name).is_file() or _sha256(directory / name) != expected:
            raise CheckpointError(f"{directory / name}: is missing or damaged (its SHA-256 is not the manifest's)")
    tensors = load_arrays(directory / "lora.safetensors")
    weights = PolicyWeights(manifest["weights_version"], tensors, manifest["weights_checksum"])
    moments = load_tensors(directory / "optimizer.safetensors")
    return {
        "step": manifest["step"],
        "weights": weights,
        "optimizer": _join_optimizer(moments, manifest["optimizer"]),
    }


def _split_optimizer(state: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], list[Any]]:
    moments = {f"{i}.{k}": torch.as_tensor(v).clone() for i, entry in state["state"].items() for k, v in entry.items()}
    return moments, list(state["param_groups"])


def _join_optimizer(moments: Mapping[str, torch.Tensor], groups: list[Any]) -> dict[str, Any]:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in moments.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    return {"state": state, "param_groups": groups}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
