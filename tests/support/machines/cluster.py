"""`ray_cluster.yaml` on hosts of this machine: its own commands, files, labels and resources, read from it."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from ray._private.ray_constants import LABELS_ENVIRONMENT_VARIABLE, RESOURCES_ENVIRONMENT_VARIABLE

from machines.host import HOME, ROOT, Host, wait_until
from machines.switch import Switch

FILE = ROOT / "ray_cluster.yaml"
ROLES = {"head": "head", "learner": "learner", "sampler-0": "sampler", "sampler-1": "sampler"}  # host → node type
SAMPLERS = tuple(name for name, kind in ROLES.items() if kind == "sampler")
ADDRESSES = {name: f"10.77.0.{10 + index}" for index, name in enumerate([*ROLES, "client", "store"])}
DASHBOARD = 8265
WARM = Path(__file__).with_name("warm.py")
PATIENCE = {"agent_register_timeout_ms": 120_000, "gcs_server_port_wait_time_s": 120}  # with a machine that is busy
SSHD = """
HostKey {home}/.ssh/host_key
AuthorizedKeysFile {home}/.ssh/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
PidFile none
Subsystem sftp internal-sftp
SetEnv {environment}
"""


class Cluster:
    """A head, a learner's host, two samplers' hosts and a client, each with an SSH server that takes the client's key.

    Args:
        shown: place → directory of this machine, on every host.
        system: settings of Ray for the head, `RAY_` left out.
    """

    def __init__(self, shown: Mapping[str, Path], system: Mapping[str, object] = {}, seed: int = 0) -> None:
        self.values: dict[str, Any] = yaml.safe_load(FILE.read_text("utf-8"))
        self.token = secrets.token_hex(32)
        self._system = {f"RAY_{name}": str(value) for name, value in {**PATIENCE, **system}.items()}
        self._stack = ExitStack()
        self.switch = Switch(seed)
        self._stack.callback(self.switch.close)
        self.hosts: dict[str, Host] = {}
        self._shown = shown
        try:
            for name in (*ROLES, "client"):
                self.add_host(name)
            self._open_ssh()
            self._warm()
        except BaseException:
            self.stop()
            raise

    def add_host(self, name: str) -> Host:
        """One of `ADDRESSES`; it ends with the cluster."""
        self.hosts[name] = Host(name, ADDRESSES[name], self.switch, self._shown, ADDRESSES)
        self._stack.callback(self.hosts[name].stop)
        return self.hosts[name]

    @property
    def client(self) -> Host:
        return self.hosts["client"]

    def start(self) -> None:
        """The head, then its workers, as `ray up` does with these files and commands."""
        self.client.write(".ray/auth_token", self.token)
        self.join("head")
        self._join_all()
        self.forward_dashboard()

    def restart(self) -> None:
        """As a head that was lost and `ray up` again: a new cluster of the same hosts."""
        self.hosts["head"].run("pkill -9 -f 'gcs_server|raylet'; sleep 1", check=False)
        self.join("head")
        self._join_all()
        wait_until(lambda: self.job("list", check=False).returncode == 0, 240, "the jobs API")

    def _join_all(self) -> None:
        """One after the other: side by side, on two cores, they may take longer than Ray waits for each."""
        for name in ROLES:
            if name != "head":
                self.join(name)

    def join(self, name: str) -> None:
        """Starts Ray on a host, again if it does not come up in the half minute that Ray has for it."""
        self._prepare(name)
        for tries_left in (2, 1, 0):
            host, variables = self.hosts[name], self._variables(name)
            if not host.run(self._start_line(name), check=not tries_left, **variables).returncode:
                return

    def forward_dashboard(self) -> None:
        """As `ray dashboard ray_cluster.yaml` does: the client's loopback leads to the head's."""
        tunnel = f"exec ssh -N -L {DASHBOARD}:127.0.0.1:{DASHBOARD} head"
        self.client.start(tunnel)  # it ends with its host
        wait_until(lambda: ("ssh", "127.0.0.1", DASHBOARD) in self.client.listening(), 60, "the tunnel to the head")
        wait_until(lambda: self.job("list", check=False).returncode == 0, 120, "the jobs API")

    def job(self, *arguments: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """`ray job …` of the client."""
        return self.client.run(
            self._job_line(*arguments), check=check, timeout_s=600, RAY_AUTH_MODE="token", **environment
        )

    def begin_job(self, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
        """`ray job …` of the client under way; what it says goes into a file of this machine."""
        line = self.client.command(self._job_line(*arguments), RAY_AUTH_MODE="token", PYTHONUNBUFFERED="1")
        with log.open("wb") as file:
            return subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)

    def stop(self) -> None:
        self._stack.close()

    def _job_line(self, verb: str, *rest: str) -> str:
        return " ".join(["ray job", verb, f"--address http://127.0.0.1:{DASHBOARD}", *rest])

    def _start_line(self, name: str) -> str:
        return " && ".join(
            f"{{ {line}; }}" for line in self.values[f"{'head' if name == 'head' else 'worker'}_start_ray_commands"]
        )

    def _variables(self, name: str) -> dict[str, str]:
        """What `ray up` gives the commands beside their text."""
        kind = self.values["available_node_types"][ROLES[name]]
        return {
            RESOURCES_ENVIRONMENT_VARIABLE: json.dumps(kind["resources"]),
            LABELS_ENVIRONMENT_VARIABLE: json.dumps(kind["labels"]),
            "RAY_HEAD_IP": ADDRESSES["head"],
            **self._system,
        }

    def _prepare(self, name: str) -> None:
        """The files that `file_mounts` and `ray up` bring, but for the code: that comes with the job."""
        place = Path("~/.ray/auth_token")
        assert str(place) in self.values["file_mounts"]
        self.hosts[name].write(HOME / place.relative_to("~"), self.token)
        if name == "head":
            provider = {"type": "readonly"}  # nothing to scale here
            self.hosts[name].write("ray_bootstrap_config.yaml", yaml.safe_dump({**self.values, "provider": provider}))

    def _warm(self) -> None:
        """Before Ray, so that its workers are started by that Python."""
        hosts = list(self.hosts.values())
        paths = {"PYTHONPATH": f"{ROOT}:{WARM.parents[1]}"}
        command = [sys.executable, WARM, *(str(host.init) for host in hosts)]
        environment = {**hosts[0].environment, **paths}
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        server = self._stack.enter_context(subprocess.Popen(command, env=environment, text=True, **streams))
        assert server.stdout
        for host in hosts:
            assert server.stdout.readline() == "ready\n", f"no warm Python on {host.name}"

    def _open_ssh(self) -> None:
        self.client.run("mkdir -m 700 .ssh && ssh-keygen -q -t ed25519 -N '' -f .ssh/id_ed25519")
        key = self.client.run("cat .ssh/id_ed25519.pub").stdout
        self.client.write(".ssh/config", "Host *\n  StrictHostKeyChecking accept-new\n  ExitOnForwardFailure yes\n")
        for name in ROLES:
            host = self.hosts[name]
            host.run("mkdir -m 700 .ssh && ssh-keygen -q -t ed25519 -N '' -f .ssh/host_key")
            host.write(".ssh/authorized_keys", key)
            environment = " ".join(f'"{k}={v}"' for k, v in host.environment.items() if k in ("PATH", "LANG"))
            host.write(".ssh/sshd_config", SSHD.format(home=HOME, environment=environment))
            host.run(f"/usr/sbin/sshd -f {HOME}/.ssh/sshd_config")
