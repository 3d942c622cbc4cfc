"""How the plain suite is spread over two processes: a file stays in one, and so do all files that start Ray."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parent
RAY = "files that start Ray"
LONG = (  # these begin first, so that no process is left with one of them at the end
    "raydense/training/test_resume.py",
    "raydense/training/test_pipelines.py",
)
MakeOnce = Callable[[str, Callable[[Path], object]], Path]


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """What `-n auto` means here; `-n 0` or any other number on the command line wins.

    Single files, what is slow or needs a GPU (it measures times, or takes the whole machine) and output that is not
    captured stay in the one process.
    """
    plain = all(f"not {name}" in config.getoption("markexpr") for name in ("slow", "gpu"))
    whole = all(Path(argument).is_dir() for argument in config.args)
    return 2 if plain and whole and config.getoption("capture") != "no" else 0


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return _ByFile(config, log)


class _ByFile(LoadScopeScheduling):
    """Module fixtures are made once; there is one cluster of the session, and never two at work beside each other."""

    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid.partition("::")[0])


@cache
def _group(file: str) -> str:
    return RAY if re.search(r"\bmark\.ray\b", (ROOT / file).read_text("utf-8")) else file


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a worker, the order in which groups begin."""
    if hasattr(config, "workerinput"):
        first = [RAY, *(f"tests/{name}" for name in LONG)]
        place = {group: index for index, group in enumerate(first)}
        items.sort(key=lambda item: place.get(_group(item.nodeid.partition("::")[0]), len(first)))


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> MakeOnce:
    """Fills a directory once for all processes of the session: make_once(name, fill) → its path."""
    own = tmp_path_factory.getbasetemp()
    root = own if worker_id == "master" else own.parent  # which xdist's workers share

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        directory, done = root / name, root / f"{name}.done"
        with FileLock(root / f"{name}.lock"):
            if not done.exists():
                directory.mkdir()
                fill(directory)
                done.touch()
        return directory

    return make
