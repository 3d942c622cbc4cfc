"""How the plain suite is spread over three processes: a file stays in one, and so do all on the session's Ray."""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from warm_python import start_warm_python
from xdist.scheduler import LoadScopeScheduling

WARM = pytest.StashKey[str]()
ROOT = Path(__file__).parents[2]
RAY = "files on the session's Ray"
kept_modules = 0
LONG = (  # these begin first, so that no process is left with one of them at the end
    "raydense/checks/test_chaos.py",
    "raydense/test_jobs.py",
    "raydense/training/test_resume.py",
    "raydense/training/test_pipelines.py",
    "deploy/test_watched_run.py",
    "raydense/evaluation/test_sweep.py",
    "raydense/evaluation/test_candidates.py",
    "raydense/diffusion/test_compiler.py",
)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """What `-n auto` means here; `-n 0` or any other number on the command line wins.

    Three for two cores: some tests wait, for Ray or for a browser. Single files, what is slow or needs a GPU (it
    measures times, or takes the whole machine) and output that is not captured stay in the one process.
    """
    plain = all(f"not {name}" in config.getoption("markexpr") for name in ("slow", "gpu"))
    whole = all(Path(argument).is_dir() for argument in config.args)
    return 3 if plain and whole and config.getoption("capture") != "no" else 0


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return _ByFile(config, log)


class _ByFile(LoadScopeScheduling):
    """Module fixtures are made once, and so is the session's cluster."""

    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid.partition("::")[0])


@cache
def _group(file: str) -> str:
    return RAY if re.search(r"\bray_cluster\b", (ROOT / file).read_text("utf-8")) else file


def _group_of(item: pytest.Item | None) -> str | None:
    return item and _group(item.nodeid.partition("::")[0])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a worker, the order in which groups begin."""
    if hasattr(config, "workerinput"):
        first = [RAY, *(f"tests/{name}" for name in LONG)]
        place = {group: index for index, group in enumerate(first)}
        items.sort(key=lambda item: place.get(_group_of(item), len(first)))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """In the process that hands out the tests, for each of the others: one warm Python serves them all."""
    if WARM not in node.config.stash:
        started = ExitStack()
        node.config.stash[WARM] = str(started.enter_context(start_warm_python()))
        node.config.add_cleanup(started.close)
    node.workerinput["warm_python"] = node.config.stash[WARM]


def shared_warm_python(config: pytest.Config) -> Path | None:
    """In a worker; it may not be ready yet."""
    given = getattr(config, "workerinput", {}).get("warm_python")
    return Path(given) if given else None


@pytest.hookimpl(hookwrapper=True)
def pytest_collection() -> Iterator[None]:
    gc.disable()
    yield
    keep_what_was_imported()
    gc.enable()


def keep_what_was_imported() -> None:
    """What is imported stays: the garbage collector need not walk it again and again, a twentieth of all time."""
    global kept_modules
    if len(sys.modules) > kept_modules + 200:  # so are libraries that a test was the first to import
        gc.collect()
        gc.freeze()
        kept_modules = len(sys.modules)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """In a worker, the session's Ray ends with the last test on it: idle, it still takes a twentieth of a core."""
    keep_what_was_imported()
    if hasattr(item.config, "workerinput") and _group_of(item) == RAY and _group_of(nextitem) != RAY:
        import ray

        ray.shutdown()
