"""One file from a Hugging Face repository, through the user's cache; the only place that downloads single files."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Literal

from raydense.core.messages import one_line

PROBE_S = 5.0


def hub_file(
    repository: str,
    filename: str,
    *,
    kind: Literal["model", "dataset"] = "model",
    instead: str,
) -> Path:
    """The local path of a repository's file, downloaded if the cache lacks it.

    Args:
        repository: owner/name.
        filename: path inside the repository.
        instead: what to do where the hub cannot be reached; ends the error.

    Raises: FileNotFoundError, in one line, whatever the hub's client raised.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    try:
        probe_hub()
        return Path(hf_hub_download(repository, filename, repo_type=kind))
    except Exception as error:  # the client's own, the HTTP library's and the operating system's: no common base
        if isinstance(cached := try_to_load_from_cache(repository, filename, repo_type=kind), str):
            return Path(cached)
        reason = one_line(error)
        raise FileNotFoundError(f"{filename} cannot be had from {repository} ({reason}); {instead}") from None


def probe_hub() -> None:
    """Returns if the hub answers at all; the client alone would retry for half a minute a file.

    Raises: ConnectionError in one line, within `PROBE_S`.
    """
    from huggingface_hub import constants, get_session

    failures: list[str] = []

    def ask() -> None:
        session: Any = get_session()  # knows the proxies of the environment
        try:
            session.head(constants.ENDPOINT, timeout=PROBE_S)
        except Exception as error:  # as above
            failures.append(one_line(error))

    asking = threading.Thread(target=ask, daemon=True)  # its limit is one for each address, and none for their names
    asking.start()
    asking.join(PROBE_S)
    if asking.is_alive():
        failures.append(f"no answer within {PROBE_S:g} s")
    if failures:
        raise ConnectionError(f"tried {constants.ENDPOINT}: {failures[0]}; nor is it in {constants.HF_HUB_CACHE}")
