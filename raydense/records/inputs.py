"""What a run was made from, in its directory: `inputs.json`, and its prompts themselves under `prompts/`."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from raydense.config import ConfigError
from raydense.files.durable import write_text

FILE = "inputs.json"


@dataclass(frozen=True)
class Pin:
    """An input as a run began with it.

    written: the location, as the configuration has it. resolved: where that was; the same for what has no path.
    sha256: by part; of the hub's models, their commit. Empty: not known, as of a model that only other nodes have.
    """

    written: str
    resolved: str
    sha256: Mapping[str, str]


def read_pins(root: Path) -> dict[str, Pin] | None:
    """By setting; None for a run from before they were kept. Raises: ConfigError naming a file that is damaged."""
    if not (root / FILE).is_file():
        return None
    try:
        content = json.loads((root / FILE).read_text("utf-8"))
        return {setting: Pin(**pin) for setting, pin in content["inputs"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{root / FILE} cannot be read ({error!r}); restore it") from None


def write_pins(
    root: Path, pins: Mapping[str, Pin], prompts: Mapping[str, Sequence[str]], accepted: Sequence[str]
) -> None:
    """Args: prompts: by set. accepted: what differs from what stood there, a line each; joins what was earlier."""
    for name, texts in prompts.items():
        kept_prompts(root, name).parent.mkdir(exist_ok=True)
        write_text(kept_prompts(root, name), _lines(texts))
    before = json.loads((root / FILE).read_text("utf-8"))["accepted"] if (root / FILE).is_file() else []
    now = [{"time": round(time.time(), 3), "changes": list(accepted)}] if accepted else []
    content = {"inputs": {setting: asdict(pin) for setting, pin in pins.items()}, "accepted": [*before, *now]}
    write_text(root / FILE, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def kept_prompts(root: Path, name: str) -> Path:
    """The run's own copy of a prompt set, a location like any other: line breaks in prompts do no harm there."""
    return root / "prompts" / f"{name}.jsonl"


def prompts_checksum(prompts: Sequence[str]) -> str:
    """SHA-256 of the copy that is kept of them."""
    return hashlib.sha256(_lines(prompts).encode()).hexdigest()


def _lines(prompts: Sequence[str]) -> str:
    return "".join(json.dumps({"prompt": prompt}, ensure_ascii=False) + "\n" for prompt in prompts)
