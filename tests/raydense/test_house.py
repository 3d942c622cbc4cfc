"""The house: every room says what it is for, stays small, is in the guide; and Ray is where its files' names say so."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path for package in ("raydense", "actors", "learner") for path in (ROOT / package).rglob("*.py"))
ROOMS = sorted({path.parent for path in FILES})
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
LAYERS = [[name.strip().removeprefix("raydense.") for name in layer.split("|")] for layer in CONTRACTS[0]["layers"]]


def lines(path: Path) -> int:
    return path.read_text("utf-8").count("\n")


def test_every_room_says_what_it_is_for() -> None:
    for room in ROOMS:
        said = ast.get_docstring(ast.parse((room / "__init__.py").read_text("utf-8")))
        assert said, room
        if room != ROOT / "raydense":  # the Python API
            assert {"Enters:", "Uses:"} <= set(said.split()), room
            assert said.count("\n") <= 4, room


def test_every_room_is_small() -> None:
    total = sum(map(lines, FILES))
    for room in ROOMS:
        own = [path for path in FILES if path.parent == room]
        assert len(own) <= 17, room
        assert sum(map(lines, own)) <= 0.12 * total, room


def test_every_room_is_in_the_guide() -> None:
    guide = (ROOT / "raydense" / "README.md").read_text("utf-8")
    rooms = [room.relative_to(ROOT / "raydense") for room in ROOMS if room.is_relative_to(ROOT / "raydense")]
    assert [room for room in rooms if f"`{room}/`" not in guide and room != Path(".")] == []
    assert "`../actors/`" in guide
    assert "`../learner/`" in guide


def name_of(room: Path) -> str:
    return str(room.relative_to(ROOT)).removeprefix("raydense/")


def test_every_room_with_code_is_a_layer() -> None:
    with_code = {path.parent for path in FILES if path.name != "__init__.py"} - {ROOT / "raydense"}
    assert {name_of(room) for room in with_code} <= {name for layer in LAYERS for name in layer}


def test_tests_mirror_the_rooms() -> None:
    tests = {path.parent for path in (ROOT / "tests" / "raydense").rglob("test_*.py")}
    rooms = {room for room in ROOMS if room.is_relative_to(ROOT / "raydense") and room.name != "presets"}
    assert {path.relative_to(ROOT / "tests") for path in tests} == {room.relative_to(ROOT) for room in rooms}


def imported(source: str) -> Iterator[str]:
    """The rooms that a module imports from, wherever it does; for config's error alone, that."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            package, _, rest = name.partition(".")
            if package == "raydense" and rest.split(".")[0] in ("config", "config_files"):
                yield "config's error" if rest.endswith(".ConfigError") else "config"
            elif package in ("raydense", "actors", "learner"):
                yield rest.split(".")[0] if package == "raydense" else package


def said_to_use(docstring: str) -> set[str]:
    """What the line "Uses:" names up to its first `;` or `.`; "X and all below" is every layer from X's down."""
    said = re.split("[;.]", " ".join(docstring.split("Uses: ")[1].split()))[0].removesuffix(" of this project")
    *names, last = said.split(", ")
    if last.endswith(" and all below"):
        last = last.split()[0]
        at = next(i for i, layer in enumerate(LAYERS) if last in layer)
        names += [name for layer in LAYERS[at:] for name in layer] + ["config's error"]
    return {*names, last} - {"nothing"}


@pytest.mark.parametrize("room", [room for room in ROOMS if room != ROOT / "raydense"], ids=name_of)
def test_a_room_uses_what_it_says(room: Path) -> None:
    said = ast.get_docstring(ast.parse((room / "__init__.py").read_text("utf-8"))) or ""
    found = {name for path in FILES if path.parent == room for name in imported(path.read_text("utf-8"))}
    found -= {name_of(room), *(["config's error"] if "config" in found else [])}
    assert found <= said_to_use(said)
    if "all below" not in said:
        assert found == said_to_use(said)


@pytest.mark.parametrize(
    ("source", "rooms"),
    [
        ("import raydense.tiny.networks", {"tiny"}),
        ("from raydense import records", {"records"}),
        ("def f():\n    from learner.losses import x", {"learner"}),
        ("if TYPE_CHECKING:\n    from raydense.core.types import X", {"core"}),
        ("from raydense.config import ConfigError", {"config's error"}),
        ("from raydense.config_files import ConfigError", {"config's error"}),
        ("from raydense.config import Config, ConfigError", {"config", "config's error"}),
        ("import torch, raydensely", set()),
    ],
)
def test_imports_are_found_by_their_room(source: str, rooms: set[str]) -> None:
    assert set(imported(source)) == rooms


@pytest.mark.parametrize(
    ("docstring", "rooms"),
    [
        ("Uses: nothing of this project.", set()),
        ("Uses: core; and pydantic.", {"core"}),
        ("Uses: families, config's\nerror, core. More.", {"families", "config's error", "core"}),
        ("Uses: tiny, sections and all below; never Ray.", {"tiny", "sections", "files", "core", "config's error"}),
    ],
)
def test_uses_is_read_as_it_is_meant(docstring: str, rooms: set[str]) -> None:
    assert said_to_use(docstring) == rooms


def test_only_files_named_after_ray_import_it() -> None:
    found = {path for path in FILES for node in ast.walk(ast.parse(path.read_text("utf-8"))) if imports_ray(node)}
    assert len(found) >= 8
    assert [path for path in found if not path.name.startswith("ray_")] == []


def imports_ray(node: ast.AST) -> bool:
    if isinstance(node, ast.Import):
        return any(alias.name.split(".")[0] == "ray" for alias in node.names)
    return isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == "ray"


@pytest.mark.parametrize(
    "source",
    ["import ray", "import os, ray.util", "def f():\n    from ray.exceptions import RayError", "from ray import get"],
)
def test_every_kind_of_import_is_seen(source: str) -> None:
    assert any(map(imports_ray, ast.walk(ast.parse(source))))


def reads_markup(source: str) -> set[str]:
    """Calls, anywhere in a module, that would read a user's `[red]` or `:cat:` as rich does by itself."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "rich":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            plain = any(k.arg == "markup" and ast.unparse(k.value) == "False" for k in node.keywords)
            console = name.endswith(("Console", "from_markup", "get_console")) or name == "rich.print"
            if console or (name.endswith(("TextColumn", "RichHandler")) and not plain):
                found.add(name)
    return found


def test_text_is_shown_as_it_is() -> None:
    found = {path: reads for path in FILES if (reads := reads_markup(path.read_text("utf-8")))}
    assert found == {ROOT / "raydense" / "core" / "terminal.py": {"Console"}}


@pytest.mark.parametrize(
    "source",
    [
        "Console()",
        "def f():\n    return rich.console.Console(stderr=True)",
        "Console(markup=False)",  # emoji codes
        "from rich import print",
        "import rich\nrich.print('x')",
        "Text.from_markup('x')",
        "TextColumn('{task.description}')",
        "progress.TextColumn('x', markup=True)",
    ],
)
def test_the_check_sees_every_kind_of_markup(source: str) -> None:
    assert reads_markup(source)
    assert not reads_markup(
        "open_console()\nTextColumn('x', markup=False)\nTable('x')\ndef f(c: Console): c.print('x')"
    )
