"""The house holds: what import-linter's layers cannot say of the packages is said here."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(path for package in ("raydense", "actors", "learner") for path in (ROOT / package).rglob("*.py"))


def imported(source: str) -> set[str]:
    """Top-level packages that a module imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_only_ray_files_import_ray(path: Path) -> None:
    if not path.name.startswith("ray_"):
        assert "ray" not in imported(path.read_text("utf-8"))


@pytest.mark.parametrize(
    "source",
    ["import ray", "import os, ray.util", "def f():\n    from ray.exceptions import RayError", "from ray import get"],
)
def test_the_check_sees_every_kind_of_import(source: str) -> None:
    assert "ray" in imported(source)


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


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_text_is_shown_as_it_is(path: Path) -> None:
    allowed = {"Console"} if path == ROOT / "raydense" / "core" / "terminal.py" else set()
    assert reads_markup(path.read_text("utf-8")) == allowed


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
