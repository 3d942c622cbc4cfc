"""The first process of a host's namespaces: lays out its files, then reaps what others leave until its owner ends.

    unshare … python -IS init.py '{"name": …, "hidden": […], "shown": {…}, "layered": […], "files": {…}}'

It is no test's business, and knows only the standard library. When it ends, the kernel ends all that runs in its
process namespace.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

STAGE = "/media"  # where things are kept while what lies over them is hidden


def lay_out(host: dict[str, Any]) -> None:
    """hidden: directories that are empty here, but for `shown`: place → what lies there, the same for all hosts.
    layered: directories that this host may change for itself alone. files: place → text.
    """
    _mount("--make-rprivate", "/")
    _mount("-t", "tmpfs", "host", STAGE)
    stages = {}
    for index, (place, source) in enumerate(host["shown"].items()):
        stages[place] = f"{STAGE}/{index}"
        os.mkdir(stages[place])
        _mount("--rbind", source, stages[place])
    for index, place in enumerate(host["layered"]):
        layers = [f"{STAGE}/layer-{index}-{name}" for name in ("above", "work", "both")]
        for layer in layers:
            os.mkdir(layer)
        above, work, both = layers
        _mount("-t", "overlay", "host", "-o", f"lowerdir={place},upperdir={above},workdir={work}", both)
        stages[place] = both
    for place in host["hidden"]:
        _mount("-t", "tmpfs", "-o", f"mode={1777 if place in ('/tmp', '/var/tmp', '/dev/shm') else 755}", "host", place)
    for place, stage in stages.items():
        os.makedirs(place, exist_ok=True)
        _mount("--rbind", stage, place)
    for index, (place, text) in enumerate(host["files"].items()):
        file = Path(f"{STAGE}/file-{index}")
        file.write_text(text)
        _mount("--bind", file, place)


def _mount(*arguments: str | os.PathLike[str]) -> None:
    subprocess.run(["mount", *arguments], check=True)


def reap() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    threading.Thread(target=_watch_owner, daemon=True).start()
    while True:
        signal.sigwait({signal.SIGCHLD})
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass


def _watch_owner() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    wanted = json.loads(sys.argv[1])
    subprocess.run(["hostname", wanted["name"]], check=True)
    lay_out(wanted)
    print("ready", flush=True)
    reap()
