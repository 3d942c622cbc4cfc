"""A host: namespaces of its own for network, processes, mounts, name and shared memory, and a card in a switch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from machines.switch import Port, Switch

ROOT = Path(__file__).parents[3]
INIT = Path(__file__).with_name("init.py")
USER = "ubuntu"
HOME = Path("/home") / USER
HIDDEN = ("/tmp", "/var/tmp", "/home", "/root", "/mnt", "/dev/shm", "/run")
THE_SAME = {place: place for place in {os.path.realpath(sys.base_prefix), str(ROOT)} - {os.path.realpath(sys.prefix)}}


class Host:
    """Started by its constructor, ended by `stop`, and by the end of this process.

    Args:
        address: IPv4, in the switch's network.
        shown: place → directory of this machine that lies there; everything else that tests write is hidden.
        names: of all hosts → address.
    """

    def __init__(
        self, name: str, address: str, switch: Switch, shown: Mapping[str, Path], names: Mapping[str, str]
    ) -> None:
        self.name, self.address, self._switch = name, address, switch
        self.environment = {
            "PATH": f"{sys.prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(HOME),
            "USER": USER,
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
            "RAY_worker_niceness": "0",  # else they hardly run where other work goes on beside the tests
        }
        wanted = {
            "name": name,
            "hidden": HIDDEN,
            "shown": {**THE_SAME, **{place: str(source) for place, source in shown.items()}},
            "layered": [sys.prefix],
            "files": {
                "/etc/hosts": "127.0.0.1 localhost\n" + "".join(f"{a} {n}\n" for n, a in names.items()),
                "/etc/passwd": f"{USER}:x:0:0::{HOME}:/bin/bash\nsshd:x:101:65534::/run/sshd:/usr/sbin/nologin\n",
            },
        }
        kinds = ["--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
        command = ["unshare", *kinds, sys.executable, "-IS", str(INIT), json.dumps(wanted)]
        self._outer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._outer.stdout is not None
        if self._outer.stdout.readline() != b"ready\n":
            raise RuntimeError(f"host {name} did not start")
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text()
        self.init = int(children.split()[0])
        self.port: Port = switch.plug(self.init, address)
        self.run(f"mkdir -p {HOME} /run/sshd")

    def command(self, line: str, **environment: str) -> list[str]:
        """What runs a line of bash on this host, at home, with nothing of this process's environment."""
        variables = [f"{name}={value}" for name, value in {**self.environment, **environment}.items()]
        enter = ["nsenter", "-t", str(self.init), "--net", "--mount", "--uts", "--ipc", "--pid"]
        return [*enter, "env", "-i", *variables, "bash", "-c", f"cd; {line}"]

    def run(
        self, line: str, *, check: bool = True, timeout_s: float = 300, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(self.command(line, **environment), capture_output=True, text=True, timeout=timeout_s)
        if check and done.returncode:
            raise RuntimeError(f"{self.name}: {line}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def start(self, line: str, **environment: str) -> subprocess.Popen[str]:
        """A process that this one talks to; it ends with its host, if not before."""
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(self.command(line, **environment), text=True, **streams)

    def write(self, place: str | Path, text: str, mode: int = 0o600) -> None:
        """A file, below the user's home unless the place is absolute."""
        place = HOME / place
        subprocess.run(
            self.command(f"mkdir -p {place.parent}; cat > {place}; chmod {mode:o} {place}"),
            input=text,
            text=True,
            check=True,
        )

    def counted(self) -> dict[str, int]:
        """Bytes at its card since it was plugged in: `rx` that came, `tx` that went, Ethernet's headers included."""
        (link,) = json.loads(self.run("ip -json -s link show eth0").stdout)
        return {way: int(link["stats64"][way]["bytes"]) for way in ("rx", "tx")}

    def listening(self) -> set[tuple[str, str, int]]:
        """Process, address and port of every TCP socket that listens and every UDP socket that is bound."""
        found = set()
        for line in self.run("ss -H -l -n -t -u -p").stdout.splitlines():
            address, port = line.split()[4].rsplit(":", 1)
            names = re.findall(r'\("([^"]+)"', line)
            found.add((names[0] if names else "?", address.strip("[]").partition("%")[0], int(port)))
        return found

    def stop(self) -> None:
        self._switch.unplug(self.port)
        assert self._outer.stdin is not None
        self._outer.stdin.close()
        try:
            self._outer.wait(20)
        except subprocess.TimeoutExpired:
            self._outer.kill()
            self._outer.wait()


def wait_until(holds: Callable[[], Any], timeout_s: float, what: str, every_s: float = 0.3) -> float:
    """Returns the seconds that it took. Raises: TimeoutError."""
    begin = time.monotonic()
    while not holds():
        if time.monotonic() - begin > timeout_s:
            raise TimeoutError(f"not within {timeout_s:g} s: {what}")
        time.sleep(every_s)
    return time.monotonic() - begin
