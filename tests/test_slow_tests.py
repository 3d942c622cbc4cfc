"""What only `pytest -m slow` runs names the test of the plain suite that shows the same, or says why there is none."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

FILES = sorted(Path(__file__).parent.rglob("test_*.py"))
TREES = {path: ast.parse(path.read_text("utf-8")) for path in FILES}


def functions(tree: ast.Module) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]


def is_slow(test: ast.FunctionDef, tree: ast.Module) -> bool:
    """By a mark of its own or of its module; a slow row of parameters has the others for its plain twin."""
    marks = [mark for mark in test.decorator_list if "parametrize" not in ast.unparse(mark)]
    marks += [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
    ]
    return any("pytest.mark.slow" in ast.unparse(mark) for mark in marks)


def slow_and_plain() -> tuple[dict[str, str], set[str]]:
    """The docstring of each slow test, with its module's; and the names of all others."""
    slow: dict[str, str] = {}
    plain: set[str] = set()
    for path, tree in TREES.items():
        for test in functions(tree):
            if is_slow(test, tree):
                slow[f"{path.name}::{test.name}"] = f"{ast.get_docstring(test)}\n{ast.get_docstring(tree)}"
            else:
                plain.add(test.name)
    return slow, plain


SLOW, PLAIN = slow_and_plain()


def said(docstring: str) -> Iterator[re.Match[str]]:
    return re.finditer(r"^(plain: `(\w+)`|no plain twin: takes )", docstring, re.MULTILINE)


def test_some_are_found() -> None:
    assert len(SLOW) >= 20
    assert "test_sd15_full_size.py::test_the_full_architecture_is_sampled_and_trained" in SLOW
    assert any(name.startswith("test_jobs.py::") for name in SLOW)  # which its module marks


@pytest.mark.parametrize("name", SLOW)
def test_a_slow_test_names_its_plain_twin(name: str) -> None:
    twins = list(said(SLOW[name]))
    assert twins, f"{name}: add 'plain: `test_…`' or 'no plain twin: takes …' to its docstring"
    assert {twin[2] for twin in twins} - {None} <= PLAIN
