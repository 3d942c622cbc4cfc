"""Files of tensors and of JSON as they really are: what they hold, and what a file is that cannot be read."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from raydense.core.messages import first_few, one_line

if TYPE_CHECKING:  # a file's JSON is read without it
    from torch import Tensor

Shapes = Mapping[str, Sequence[int]]  # of tensors, by name

LFS_POINTER = b"version https://git-lfs"
LONGEST_HEADER = 100_000_000  # bytes, of a safetensors file: the format's own limit
AGAIN = "download it again"


class FileFault(ValueError):
    """A file that is not what it should be; the message says what it seems to be and what to do, without its name."""


def read_json(path: Path) -> Mapping[str, Any]:
    """The mapping in a JSON file. Raises: FileFault."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise FileFault(_seems(path) or _broken_json(error)) from None
    if not isinstance(content, dict):
        kind = {list: "a list", str: "text", type(None): "null"}.get(type(content), "a number")
        raise FileFault(f"holds {kind} where a mapping belongs; correct it or {AGAIN}")
    return content


def check_text(path: Path) -> None:
    """Raises: FileFault if a text file is empty, or something in the place of one."""
    if seems := _seems(path):
        raise FileFault(seems)


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a safetensors file's tensors, by name, from its header alone. Raises: FileFault."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise FileFault(_unreadable(path, error)) from None


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """A safetensors file's tensors by name, and its metadata. Raises: FileFault."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise FileFault(_unreadable(path, error)) from None


def read_checkpoint(path: Path, device: str = "cpu") -> Any:
    """What `torch.save` wrote, of tensors, numbers and containers alone; memory-mapped where the format allows.

    Args: device: `meta` reads no tensor's values.
    Raises: FileFault.
    """
    import torch

    try:
        return torch.load(path, map_location=device, weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError) as error:
        raise FileFault(_unreadable(path, error)) from None


def misfit(found: Shapes, expected: Shapes) -> str:
    """How two sets of tensors differ, in a line that names the first few of every kind; "" if they do not."""
    kinds = {
        "missing": sorted(expected.keys() - found.keys()),
        "surplus": sorted(found.keys() - expected.keys()),
        "misshapen": [
            f"{name} {list(found[name])}, not {list(expected[name])}"
            for name in sorted(expected.keys() & found.keys())
            if tuple(found[name]) != tuple(expected[name])
        ],
    }
    return "; ".join(f"{len(names)} {kind}: {first_few(names)}" for kind, names in kinds.items() if names)


# -- what a file is that cannot be read ------------------------------------------------------------------------


def _unreadable(path: Path, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    tensors_cut = _cut_safetensors(path) if path.suffix == ".safetensors" else _cut_zip(path)
    return _seems(path) or tensors_cut or f"cannot be read as a file of tensors alone ({reason}); {AGAIN}"


def _seems(path: Path) -> str:
    """What stands in a file's place, as a failed download or clone leaves it; "" if nothing of the kind."""
    size, head = _look(path)
    if size is None:
        return ""
    if size == 0:
        return f"is empty; {AGAIN}"
    if head.startswith(LFS_POINTER):
        stated = re.search(rb"^size (\d+)$", head, re.MULTILINE)
        of = f" of {int(stated[1]):,} bytes" if stated else ""
        return f"is a pointer of large-file storage to a file{of}; run `git lfs pull` in its clone, or {AGAIN}"
    if re.match(rb"\s*<(!doctype|html|head|\?xml)", head, re.IGNORECASE):
        return f"is a web page of {size:,} bytes, such as a log-in form; {AGAIN}"
    if path.suffix == ".safetensors" and head.startswith((b"PK\x03\x04", b"\x80\x02")):
        return "is a file of torch.save under a name of safetensors; convert it"
    if path.suffix != ".json" and re.match(rb'\s*\{\s*"', head):
        return f"is JSON text, such as a server's error message; {AGAIN}"
    return ""


def _broken_json(error: OSError | ValueError) -> str:
    cut = isinstance(error, json.JSONDecodeError) and (
        error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated")
    )
    if cut:
        return f"ends early, as a cut download does; {AGAIN}"
    return f"cannot be read as JSON ({getattr(error, 'strerror', None) or one_line(error)}); correct it or {AGAIN}"


def _cut_safetensors(path: Path) -> str:
    """How much is there of a safetensors file whose end is missing; "" if that is not what is wrong."""
    size, head = _look(path)
    if size is None or size < 8 or not 2 <= (header := int.from_bytes(head[:8], "little")) <= LONGEST_HEADER:
        return ""
    if head[8:9] not in (b"{", b""):
        return ""
    if 8 + header > size:
        return f"is cut off: {size:,} bytes are there, and its header alone takes {8 + header:,}; {AGAIN}"
    with path.open("rb") as file:
        file.seek(8)
        try:
            entries = json.loads(file.read(header))
            ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
            expected = 8 + header + max(ends, default=0)
        except (ValueError, TypeError, LookupError, AttributeError):
            return ""
    return f"is cut off: {size:,} of {expected:,} bytes are there; {AGAIN}" if size < expected else ""


def _cut_zip(path: Path) -> str:
    """A zip archive, as `torch.save` writes it, has its table of contents at its end."""
    size, head = _look(path)
    if size is None or not head.startswith(b"PK\x03\x04") or zipfile.is_zipfile(path):
        return ""
    return f"is cut off: {size:,} bytes are there, and its end is missing; {AGAIN}"


def _look(path: Path) -> tuple[int | None, bytes]:
    """A file's size and first bytes; None where it cannot be opened."""
    try:
        with path.open("rb") as file:
            return path.stat().st_size, file.read(1024)
    except OSError:
        return None, b""
