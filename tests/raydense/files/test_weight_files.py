"""Every kind of damaged file is named for what it seems to be, with what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from raydense.files.weight_files import (
    FileFault,
    check_text,
    misfit,
    read_checkpoint,
    read_json,
    read_safetensors,
    read_shapes,
)

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 492265168\n"
PAGE = b"<!DOCTYPE html>\n<html><body>Sign in</body></html>"
DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {  # what happened to a file: how it is described
    "a pointer": (lambda _: POINTER, "is a pointer of large-file storage to a file of 492,265,168 bytes; run `git lfs"),
    "a web page": (lambda _: PAGE, "is a web page of 49 bytes, such as a log-in form; download it again"),
    "nothing": (lambda _: b"", "is empty; download it again"),
}
TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(4)}


def write_safetensors(path: Path) -> None:
    save_file(TENSORS, path, metadata={"said": "so"})


def write_checkpoint(path: Path) -> None:
    torch.save(TENSORS, path)


def write_json(path: Path) -> None:
    path.write_text(json.dumps({"words": ["a" * 100, "b"]}))


def write_text(path: Path) -> None:
    path.write_text("#version: 0.2\na b\n")


FILES: dict[str, tuple[Callable[[Path], None], Callable[[Path], Any], dict[str, tuple[Any, str]]]] = {
    "a.safetensors": (
        write_safetensors,
        read_shapes,
        {
            "cut in its tensors": (lambda all_: all_[:-8], "is cut off: 184 of 192 bytes are there; download it again"),
            "cut in its header": (lambda all_: all_[:50], "is cut off: 50 bytes are there, and its header alone takes"),
            "a message": (lambda _: b'{"error": "not found"}', "is JSON text, such as a server's error message"),
            "a pickle": (lambda _: b"PK\x03\x04" + bytes(99), "is a file of torch.save under a name of safetensors"),
            "noise": (lambda _: bytes(range(7, 99)), "cannot be read as a file of tensors alone (Error while"),
        },
    ),
    "a.pt": (
        write_checkpoint,
        read_checkpoint,
        {
            "cut": (lambda all_: all_[: len(all_) // 2], "bytes are there, and its end is missing; download it again"),
            "a message": (lambda _: b'{"error": "not found"}', "is JSON text, such as a server's error message"),
            "noise": (lambda _: b"no tensors", "cannot be read as a file of tensors alone ("),
        },
    ),
    "a.json": (
        write_json,
        read_json,
        {
            "cut": (lambda all_: all_[:40], "ends early, as a cut download does; download it again"),
            "cut between two": (lambda all_: all_[:10], "ends early, as a cut download does; download it again"),
            "a list": (lambda _: b"[1]", "holds a list where a mapping belongs; correct it"),
            "text": (lambda _: b'"x"', "holds text where a mapping belongs; correct it"),
            "a comma too many": (lambda _: b'{"a": 1,, "b": 2}', "cannot be read as JSON (Expecting property name"),
            "another encoding": (lambda _: b'{"a": "\xe4"}', "cannot be read as JSON ('utf-8' codec can't decode"),
        },
    ),
    "merges.txt": (write_text, check_text, {}),
}
CASES = [(name, kind, *case) for name, (_, _, own) in FILES.items() for kind, case in {**DAMAGE, **own}.items()]


@pytest.mark.parametrize(("name", "kind", "spoil", "said"), CASES, ids=[f"{name}: {kind}" for name, kind, *_ in CASES])
def test_damage_is_described(tmp_path: Path, name: str, kind: str, spoil: Callable[[bytes], bytes], said: str) -> None:
    write, read, _ = FILES[name]
    write(tmp_path / name)
    read(tmp_path / name)
    (tmp_path / name).write_bytes(spoil((tmp_path / name).read_bytes()))
    with pytest.raises(FileFault) as caught:
        read(tmp_path / name)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for name, (_, read, _) in FILES.items():
        if name != "merges.txt":
            with pytest.raises(FileFault, match="No such file"):
                read(tmp_path / name)


def test_what_is_sound_is_read(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors")
    write_checkpoint(tmp_path / "a.pt")
    assert read_shapes(tmp_path / "a.safetensors") == {"a": (2, 3), "b": (4,)}
    tensors, texts = read_safetensors(tmp_path / "a.safetensors")
    assert texts == {"said": "so"}
    for found in (tensors, read_checkpoint(tmp_path / "a.pt")):
        assert torch.equal(found["a"], TENSORS["a"])
    meta = read_checkpoint(tmp_path / "a.pt", "meta")
    assert (meta["a"].device.type, meta["a"].shape) == ("meta", (2, 3))


def test_misfits_are_counted_and_named_by_kind() -> None:
    expected = {"a": (1,), "b": (2,), **{f"layer.{i}": (3,) for i in range(6)}}
    assert misfit(expected, expected) == ""
    assert misfit({**expected, "c": (1,)}, expected) == "1 surplus: c"
    found = {"a": (1, 1), "b": (2,), "c": (5,)}
    assert misfit(found, expected) == (
        "6 missing: layer.0, layer.1, layer.2, layer.3 and 2 more; 1 surplus: c; 1 misshapen: a [1, 1], not [1]"
    )
