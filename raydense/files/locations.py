"""Where a model or a prompt file is: `pkg://package/path` (inside an installed package), a path, or a hub id."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

PACKAGE_SCHEME = "pkg://"


def short(location: str) -> str:
    """As people call it: `sd15` of `/models/sd15`; of a package, the whole path in it."""
    inside = location.removeprefix(PACKAGE_SCHEME)
    return inside if inside != location else Path(location).name or location


def below(root: str | Path, name: str) -> str:
    """Where a file of a directory lies; what a URI says after `?` stays at its end."""
    place, mark, query = str(root).partition("?") if "://" in str(root) else (root, "", "")
    return f"{place}/{name}{mark}{query}"


def resolve(location: str) -> str:
    """Turns `pkg://package/path` into a path; everything else is returned as it is.

    Raises: FileNotFoundError if the package or the file does not exist.
    """
    if not location.startswith(PACKAGE_SCHEME):
        return location
    package, _, inside = location.removeprefix(PACKAGE_SCHEME).partition("/")
    try:
        roots = list(import_module(package).__path__)
    except (ImportError, AttributeError):
        raise FileNotFoundError(f"{location}: no installed package {package!r}") from None
    for root in roots:
        if (path := Path(root) / inside).exists():
            return str(path)
    raise FileNotFoundError(f"{location}: no {inside!r} in package {package!r}")
