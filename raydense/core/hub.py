"""One file from a Hugging Face repository, through the user's cache; the only place that downloads single files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


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
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, filename, repo_type=kind))
    except Exception as error:  # the client's own, the HTTP library's and the operating system's: no common base
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FileNotFoundError(f"{filename} cannot be had from {repository} ({reason}); {instead}") from None
