"""Runs of raydense on a cluster of hosts: submitted by the client, written to a shared directory, read from here."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from machines.cluster import Cluster
from machines.host import HOME, ROOT, wait_until

SHARED, MODELS = Path("/mnt/shared"), Path("/mnt/models")  # as hosts see them
CODE = HOME / "code"  # on the client: one for all runs, so that hosts fetch and compile it once
PACKAGES = ("raydense", "actors", "learner")
RESULT = ("lora/pytorch_lora_weights.safetensors", "metrics.jsonl", "scores.json")  # whose bytes must not change
ON_GPU_NODES = {  # deploy/README.md's settings
    "samplers.num_gpus": 1,
    "samplers.labels.raydense/role": "sampler",
}
LARGE = {  # groups of 0.66 MB, below the size from which on the driver keeps them on disk and fetches them, too
    "sampler": {"trajectories": 256, "keep": 256, "unit_prompts": 1, "guidance_scale": 1.0},
    "stage": {"count": 2, "groups": 12, "steps": 4},
    "train": {"batch_groups": 12},
}
SMALL = {"sampler": {"unit_prompts": 1}, "stage": {"count": 3, "groups": 16, "steps": 24}}
SCORER = """
import json, os, socket, time
from pathlib import Path

HERE = Path(os.environ["RUN_OF_THE_TESTS"])

def note(what, **more):
    host = socket.gethostname()
    with open(HERE / what / host, "a") as file:
        file.write(json.dumps({"host": host, "time": time.time(), **more}) + chr(10))

def score(images, prompts):
    note("begun")
    began = time.monotonic()
    while time.monotonic() - began < float((HERE / "pace").read_text()):  # as long as a unit shall take now
        time.sleep(0.05)
    note("done", images=len(images))
    return images.mean(axis=(1, 2, 3)) / 255
"""


def on_the_hosts(values: dict[str, Any]) -> dict[str, Any]:
    """A small configuration whose files lie where hosts see them."""
    kept = {key: value for key, value in values.items() if key != "samplers"}
    kept["policy"] = {**kept["policy"], "model": str(MODELS / "pipeline")}
    kept["prompts"] = {name: str(MODELS / f"{name}.txt") for name in ("train", "unseen")}
    return kept


class Runs:
    """Args: shared: the directory of this machine that hosts see as `SHARED`. values: of every configuration."""

    def __init__(self, cluster: Cluster, shared: Path, values: dict[str, Any]) -> None:
        self._cluster, self._shared, self._values = cluster, shared, values
        self._calm: dict[str, Path] = {}
        cluster.client.run(f"mkdir {CODE} && cp -r {' '.join(str(ROOT / package) for package in PACKAGES)} {CODE}")
        cluster.client.run(f"find {CODE} -name __pycache__ -prune -exec rm -r {{}} +")
        cluster.client.write(CODE / "bright.py", SCORER)

    def project(self, name: str, *, pace_s: float = 0.0, **updates: Any) -> Path:
        """A directory with a configuration and the scorer's notes, as hosts see it."""
        for notes in ("begun", "done"):
            (self._shared / name / notes).mkdir(parents=True)
        (self._shared / name / "pace").write_text(str(pace_s))
        learner = {"device": "cpu", "num_gpus": 1}  # the hosts' GPUs are not real
        values = {**self._values, "name": name, "learner": learner}
        values["sampler"] = {**values["sampler"], "device": "cpu"}
        values["reward"] = {"scorer": {"kind": "callable", "name": "bright", "target": "bright:score"}}
        for key, value in updates.items():
            values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
        (self._shared / name / "config.yaml").write_text(yaml.safe_dump(values))
        return SHARED / name

    def calm(self, project: Path) -> Path:
        """The same configuration on the client alone, without Ray, once for all projects that have it; its run
        directory, as seen from here.
        """
        here = self._shared / project.name
        values = {**yaml.safe_load((here / "config.yaml").read_text()), "name": ""}
        known = self._calm.get(key := json.dumps(values))
        if known is None:
            (here / "pace").write_text("0")
            self.locally(project, f"{project}/config.yaml --out {project}/calm")
            known = self._calm[key] = here / "calm"
        return known

    def locally(
        self, project: Path, arguments: str, *, check: bool = True, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """`raydense train --local` on the client."""
        line = f"cd {CODE} && python -m raydense.cli train --local {arguments}"
        return self._cluster.client.run(line, check=check, timeout_s=900, **_notes(project), **variables)

    def begin(
        self,
        project: Path,
        *,
        out: str = "",
        variables: Mapping[str, str] = {},
        working_dir: Path = CODE,
        **settings: Any,
    ) -> Run:
        """`ray job submit --working-dir`, followed. out: another place than the shared directory. variables: its
        environment's.
        """
        wanted = {**ON_GPU_NODES, "samplers.count": 2, **settings}
        options = " ".join(f"--set {key}={value}" for key, value in wanted.items())
        arguments = f"{project}/config.yaml {options} --out {out or project / 'run'}"
        return self._submit(project, arguments, variables, working_dir)

    def resume(self, project: Path, *, out: str = "", variables: Mapping[str, str] = {}) -> Run:
        return self._submit(project, f"--resume {out or project / 'run'}", variables)

    def _submit(self, project: Path, arguments: str, variables: Mapping[str, str], working_dir: Path = CODE) -> Run:
        out = self._shared / project.name / "run"
        log = out.with_name(f"job-{len(list(out.parent.glob('job-*')))}")
        environment = shlex.quote(json.dumps({"env_vars": {**_notes(project), **variables}}))
        options = [f"--working-dir {working_dir}", f"--runtime-env-json {environment}"]
        command = f"python -m raydense.cli train {arguments}"
        return Run(out, self._cluster.begin_job(log, "submit", *options, "--", command), log)


def _notes(project: Path) -> dict[str, str]:
    """Where the scorer of a run finds its directory."""
    return {"RUN_OF_THE_TESTS": str(project)}


class Run:
    """A job under way, and what it leaves in `out`."""

    def __init__(self, out: Path, job: subprocess.Popen[bytes], log: Path) -> None:
        self.out, self.job, self.log = out, job, log

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def job_id(self) -> str:
        """Ray's; empty until it is submitted."""
        found = re.search(r"raysubmit_\w+", self.said)
        return found[0] if found else ""

    @property
    def ended(self) -> bool:
        return self.job.poll() is not None

    def pace(self, seconds: float) -> None:
        """How long the scorer takes for a unit from now on."""
        new = self.out.parent / "new-pace"
        new.write_text(str(seconds))
        new.replace(self.out.parent / "pace")

    def until(self, holds: Callable[[], Any], what: str, timeout_s: float = 600) -> float:
        """Seconds until it holds. Raises: AssertionError if the run ended before, or the time is over."""
        began = time.monotonic()
        wait_until(lambda: holds() or self.ended, timeout_s, f"{what}\n{self.said[-3000:]}", every_s=0.1)
        assert holds(), f"the run ended before: {what}\n{self.said[-3000:]}"
        return time.monotonic() - began

    def finish(self, timeout_s: float = 900) -> str:
        """What it said. Raises: AssertionError if it failed."""
        self.job.wait(timeout_s)
        assert self.job.returncode == 0, self.said[-4000:]
        return self.said

    def rows(self, name: str, **wanted: Any) -> list[dict[str, Any]]:
        """Whole rows of `telemetry` or `metrics` that have these values."""
        path = self.out / f"{name}.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
        return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]

    def units(self, **wanted: Any) -> list[dict[str, Any]]:
        return self.rows("telemetry", kind="unit", **wanted)

    def arrived(self, stage: int, count: int) -> bool:
        """Whether so many of the stage's units have."""
        return len(self.units(stage=stage)) >= count

    def calls(self, what: str = "done", since: float = 0.0) -> Counter[str]:
        """Calls of the scorer by the cluster's host, of those that were begun or done since then."""
        files = (self.out.parent / what).iterdir()
        notes = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        return Counter(note["host"] for note in notes if note["time"] >= since and note["host"] != "client")

    def faults(self) -> Counter[str]:
        """The fleet's own account over the whole run: deaths, hangs, lost, retried, resampled."""
        counts: Counter[str] = Counter()
        for row in self.rows("telemetry", kind="ledger"):
            for key, value in row.items():
                if key.startswith("fleet/") and key != "fleet/live_samplers":
                    counts[key.removeprefix("fleet/")] = max(counts[key.removeprefix("fleet/")], int(value))
        return +counts

    def assert_same(self, calm: Path) -> None:
        """The calm run's bytes, and a ledger that balances at the end of every stage."""
        for name in RESULT:
            assert (self.out / name).read_bytes() == (calm / name).read_bytes(), name
        last = {row["stage"]: row for row in self.rows("telemetry", kind="ledger")}
        assert last
        for stage, row in last.items():
            assert row["issued"] == row["finished"] == row["consumed"], f"stage {stage}: {row}"
