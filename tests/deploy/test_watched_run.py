"""One run on a private Ray, from outside: who can reach it, what metrics and the dashboard show, what it leaves.

no plain twin: takes a run that waits for Prometheus and a browser.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from browsing import CHROMIUM, needs_chromium, open_browser
from prometheus_server import Prometheus, needs_prometheus, start_prometheus
from ray_pages import RayPages, grafana_stand_in
from warm_python import process_of

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SECRETS = {name: f"secret-of-{name.lower()}-0123456789abcdef" for name in (
    "HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN")}  # fmt: skip
DASHBOARD = json.loads((DEPLOY / "grafana" / "raydense.json").read_text("utf-8"))
QUERIES = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
TRAINED = "run/checkpoints/stage-0002/manifest.json"  # what is left then is to judge
PATIENT = f"""
import time
from pathlib import Path

here = Path(__file__).parent

def score(images, prompts):  # it waits for Prometheus: until Ray's exporter answers, and again after training
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline:
        if (here / "answers").exists() and ((here / "seen").exists() or not (here / "{TRAINED}").exists()):
            break
        time.sleep(0.1)
    return images.mean(axis=(1, 2, 3))
"""
DRIVER = "01000000"  # the first job of its Ray
LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def _not_here(expression: str) -> bool:
    return any(name in expression for name in ("ray_node_gpus", "ray_node_gram"))  # no GPU in the tests


@dataclass
class Watched:
    """What was seen while the run was on, and what it left."""

    out: Path
    session: Path  # Ray's directory
    output: str
    exit_code: int
    listening: set[tuple[str, str]] = field(default_factory=set)  # process, address
    prometheus: Prometheus | None = None
    pages: dict[str, Any] = field(default_factory=dict)  # of Ray's dashboard, by name
    left: list[str] = field(default_factory=list)  # processes that outlived it


def _listening(processes: Iterable[psutil.Process]) -> set[tuple[str, str]]:
    found = set()
    for process in processes:
        try:
            for connection in process.net_connections(kind="inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found.add((process.name(), connection.laddr.ip))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def _look(session: Path, directory: Path) -> dict[str, Any]:
    """At Ray's dashboard while the run is on."""
    log = (session / "session_latest" / "logs" / "dashboard.log").read_text()
    address = re.findall(r"Dashboard head http address: (\S+)", log)[-1]
    with open_browser(directory / "profile") as browser:
        ray = RayPages(browser, address, SECRETS["RAY_AUTH_TOKEN"])
        return {
            "actors": ray.actors(),
            "jobs": ray.jobs(),
            "tasks": ray.tasks(DRIVER),
            "timeline": ray.timeline(DRIVER),
            "overview": ray.embedded("overview", 2),
            "metrics": ray.embedded("metrics", 1),
        }


@pytest.fixture(scope="module")
def watched(
    warm_python: Path, small_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    directory = tmp_path_factory.mktemp("watched")
    ray_directory = Path("/tmp") / f"rdw{os.getpid()}"  # short: the paths of sockets are limited to 107 bytes
    ray_directory.mkdir()
    values = {**small_values, "name": "watched", "stage": {"count": 2, "groups": 6, "steps": 30}}
    values["evaluate"] = {**values["evaluate"], "every_steps": 30}
    values["learner"] = {"num_workers": 2, "num_cpus": 0.5}  # they listen for each other, too
    patient = {"kind": "callable", "name": "patient", "target": "patient:score"}
    values["reward"] = {**values["reward"], "monitors": [{**values["reward"]["scorer"], "name": "clip-2"}, patient]}
    (directory / "patient.py").write_text(PATIENT)
    (directory / "config.yaml").write_text(yaml.safe_dump(values))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {**SECRETS, "RAY_TMPDIR": str(ray_directory), "RAY_metrics_report_interval_ms": "1000",
                    "RAY_worker_niceness": "0"}  # fmt: skip
    prometheus = start_prometheus(directory, ray_directory) if shutil.which("prometheus") else None
    command = [warm_python, "-m", "raydense.cli", "train", "config.yaml", "--out", "run", "--log-format", "json"]
    pages: dict[str, Any] = {}
    run = None
    try:
        with grafana_stand_in(DEPLOY / "grafana") as grafana, open(directory / "output", "wb") as output:
            environment |= {"RAY_GRAFANA_HOST": grafana, "RAY_GRAFANA_DEFAULT_DASHBOARD_UID": "raydense",
                            "RAY_PROMETHEUS_HOST": prometheus.url if prometheus else ""}  # fmt: skip
            run = subprocess.Popen(command, cwd=directory, env=environment, stdout=output, stderr=subprocess.STDOUT)
            listening: set[tuple[str, str]] = set()
            processes: set[psutil.Process] = set()
            here = [expression for _, expression in QUERIES if not _not_here(expression)]
            process = psutil.Process(process_of(run))
            while run.poll() is None:
                with suppress(psutil.NoSuchProcess):  # it ended meanwhile
                    processes |= {process, *process.children(recursive=True)}
                listening |= _listening(processes)
                time.sleep(0.5)
                if prometheus is None or prometheus.has("up == 1"):  # what is set before that is never exported
                    (directory / "answers").touch()
                if not (directory / TRAINED).exists() or (directory / "seen").exists():
                    continue
                if prometheus is None or prometheus.has(*here):
                    pages = _look(ray_directory / "ray", directory) if CHROMIUM else {}
                    time.sleep(3)  # until Prometheus has the last values, too
                    (directory / "seen").touch()
        left = [process.name() for process in psutil.wait_procs(processes, timeout=5)[1]]
        text = (directory / "output").read_text()
        yield Watched(directory / "run", ray_directory, text, run.returncode, listening, prometheus, pages, left)
    finally:
        if run and run.poll() is None:
            process.kill()  # and what it started ends with it
        if prometheus:
            prometheus.process.terminate()
            prometheus.process.wait()
        shutil.rmtree(ray_directory, ignore_errors=True)


def test_the_run_ends_well(watched: Watched) -> None:
    assert watched.exit_code == 0, watched.output[-3000:]


def test_none_of_its_processes_outlives_it(watched: Watched) -> None:
    assert watched.left == []


def test_nothing_listens_beyond_loopback(watched: Watched) -> None:
    assert {"gcs_server", "raylet"} <= {name for name, _ in watched.listening}
    assert {(name, ip) for name, ip in watched.listening if ip not in LOOPBACK} == set()


def test_nobody_else_on_the_machine_can_read_the_run(watched: Watched) -> None:
    assert stat.S_IMODE(watched.out.stat().st_mode) == 0o700


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_of_the_environment_is_in_no_file_of_the_run_and_in_no_log(watched: Watched, name: str) -> None:
    secret = SECRETS[name].encode()
    assert secret not in watched.output.encode()
    files = [p for root in (watched.out, watched.session) for p in root.rglob("*") if p.is_file()]
    assert any(p.suffix == ".safetensors" for p in files) and any("raylet" in p.name for p in files)
    assert [str(p) for p in files if secret in p.read_bytes()] == []


def _last(series: Mapping[str, Any]) -> float:
    return float(series["values"][-1][1])


@needs_prometheus
def test_prometheus_finds_ray_by_its_discovery_file_and_sees_the_run(watched: Watched) -> None:
    assert watched.prometheus
    rows = [json.loads(line) for line in (watched.out / "metrics.jsonl").read_text().splitlines()]
    (rewards,) = watched.prometheus.query("ray_raydense_reward_mean")
    assert rewards["metric"]["run"] == "watched"
    told = [row["reward/mean"] for row in rows if row["kind"] == "stage"]
    assert _last(rewards) == pytest.approx(told[-1])
    (steps,) = watched.prometheus.query("ray_raydense_step")
    assert 0 < _last(steps) <= 60


@needs_prometheus
def test_counters_are_tagged_by_sampler(watched: Watched) -> None:
    assert watched.prometheus
    images = {s["metric"]["sampler"]: _last(s) for s in watched.prometheus.query("ray_raydense_sampler_images_total")}
    assert set(images) == {"sampler-0", "sampler-1"}
    drawn = sum(row["images"] for row in map(json.loads, (watched.out / "telemetry.jsonl").read_text().splitlines())
                if row["kind"] == "unit")  # fmt: skip
    assert sum(images.values()) >= drawn == 2 * 6 * 4  # beside the training's, those for judging and grids


@needs_prometheus
@pytest.mark.parametrize(("title", "expression"), QUERIES)
def test_every_query_of_the_dashboard_finds_what_is_exported(watched: Watched, title: str, expression: str) -> None:
    assert watched.prometheus
    assert (watched.prometheus.query(expression) == []) == _not_here(expression), title


@needs_prometheus
def test_alerts_see_living_samplers(watched: Watched) -> None:
    assert watched.prometheus
    alerts = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text("utf-8"))
    rules = {rule["alert"]: rule["expr"] for group in alerts["groups"] for rule in group["rules"]}
    alive = rules["RaydenseNoLiveSampler"].split("unless on () ")[1]
    assert watched.prometheus.query(alive) != []
    assert max(float(v) for s in watched.prometheus.query(alive.removesuffix(" > 0")) for _, v in s["values"]) == 2


@needs_prometheus
def test_the_name_of_a_single_task_begins_no_series(watched: Watched) -> None:
    assert watched.prometheus
    assert watched.prometheus.query("ray_tasks") != []
    assert watched.prometheus.query('ray_tasks{Name=~"(sample|judge|train) .+"}') == []
    processes = {s["metric"]["Component"] for s in watched.prometheus.query("ray_component_uss_mb")}
    ours = {name for name in processes if re.match("ray::(Sampler|Learner|sample|judge|train)", name)}
    assert {name.split(".")[0] for name in ours} == {"ray::Sampler", "ray::Learner"}


def _cells(watched: Watched, page: str, *columns: int) -> set[tuple[str, ...]]:
    return {tuple(row[column] for column in columns) for row in watched.pages[page] if len(row) > max(columns)}


@needs_chromium
def test_the_actors_page_says_who_is_at_work_with_what(watched: Watched) -> None:
    model = Path(yaml.safe_load((watched.out / "config.yaml").read_text())["policy"]["model"]).name
    assert _cells(watched, "actors", 3, 4, 5, 6) == {
        (role, f"watched/{role.lower()}-{number}", f"{role}({model}, cpu, float32)", "ALIVE")
        for role in ("Sampler", "Learner")
        for number in (0, 1)
    }


@needs_chromium
def test_the_list_of_jobs_has_the_runs_name(watched: Watched) -> None:
    assert _cells(watched, "jobs", 0, 1) == {(DRIVER, "watched")}


@needs_chromium
def test_the_table_of_tasks_reads_like_algorithm_1(watched: Watched) -> None:
    listed = _cells(watched, "tasks", 1, 6)
    learnt = {
        (f"train stage {stage} step {30 * stage + step}", "Learner.train") for stage in (0, 1) for step in range(1, 31)
    }
    drawn = {(f"sample stage {stage} unit {unit}", "Sampler.sample") for stage in (0, 1) for unit in (0, 1, 2)}
    assert (learnt | drawn) - listed == set()
    assert ("judge weights 0 pictures 0 to 3", "Sampler.render") in listed


@needs_chromium
def test_the_timeline_has_the_same_words(watched: Watched) -> None:
    slices = {(event["cat"], event["name"]) for event in watched.pages["timeline"] if "cat" in event}
    expected = {("task::train stage 1 step 40", "train"), ("task::sample stage 1 unit 2", "sample")}
    assert expected - slices == set()


@needs_chromium
def test_the_metrics_page_is_our_grafana_dashboard(watched: Watched) -> None:
    (shown,) = watched.pages["metrics"].values()
    titles = [panel["title"] for panel in DASHBOARD["panels"]]
    assert shown.split() == " ".join(("raydense", *titles)).split()


@needs_chromium
def test_the_overview_finds_the_panels_that_it_embeds(watched: Watched) -> None:
    assert watched.pages["overview"] == {"Cluster Utilization": "Utilisation", "Node Count": "Nodes"}
