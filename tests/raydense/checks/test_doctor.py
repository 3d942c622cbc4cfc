"""What the doctor finds on a sound configuration, and on one that is not."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file
from small_families import write_flux
from typer.testing import CliRunner

from raydense.checks import doctor
from raydense.checks.check import Check
from raydense.checks.doctor import examine
from raydense.cli import app
from raydense.config import Config


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydense.checks.ray_doctor.check_ray", lambda config, plan: [Check("Ray", True, "left out")])


def findings(config: Config, out: Path) -> dict[str, Check]:
    return {check.name: check for check in examine(config, out, tflops=1.0)}


@pytest.mark.usefixtures("without_ray")
def test_a_sound_configuration(small_config: Callable[..., Config], tmp_path: Path) -> None:
    found = findings(small_config(), tmp_path / "run")
    assert [name for name, check in found.items() if not check.ok] == []
    assert found["versions"].detail.startswith("Python 3.")
    assert "2 samplers" in found["time"].detail
    assert "8 images" in found["work unit"].detail  # two prompts, four trajectories each
    assert found["ρ noise"].detail == "a log-ratio is off by 0, δ 0.01"  # in float32, against float32
    assert "π_old noise" not in found
    assert "peak" in found["memory"].detail
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("without_ray")
def test_the_step_without_a_density_has_no_log_ratio(
    small_config: Callable[..., Config], make_once: Callable[..., Path], tmp_path: Path
) -> None:
    model = {"model": str(make_once("kind-flux", write_flux)), "t5_tokens": 12}
    found = findings(small_config(policy=model, sampler={"latent_size": 8}, learner={"dtype": "bfloat16"}), tmp_path)
    assert [name for name, check in found.items() if not check.ok] == []
    noise = re.match(r"^a log-ratio is off by (\S+), δ 0.01", found["ρ noise"].detail)
    assert noise and 0 < float(noise[1]) < 0.1


@pytest.mark.usefixtures("without_ray")
def test_noise_near_the_clip_is_told(small_config: Callable[..., Config], tmp_path: Path) -> None:
    train, sampler = {"clip": 1e-9, "reg_to_pi_old": True}, {"dtype": "float32", "exact": True}
    found = findings(small_config(train=train, sampler=sampler, learner={"dtype": "bfloat16"}), tmp_path)
    told = r"^a log-ratio is off by (\S+), δ 1e-09: below 3 times that; %s helps$"
    early = re.match(told % "learner.dtype=float32", found["ρ noise"].detail)
    apart = re.match(told % "one dtype for sampler and learner", found["π_old noise"].detail)
    assert early and apart
    assert 1e-6 < float(early[1]) < 0.1 and 1e-6 < float(apart[1]) < 0.1
    assert found["ρ noise"].ok  # it is a choice, and the published one


def no_judge(images: Any, prompts: Any) -> Any:
    raise TimeoutError("the service is out")


@pytest.mark.usefixtures("without_ray")
def test_a_monitor_that_fails_is_told(small_config: Callable[..., Config], tmp_path: Path) -> None:
    monitor = {"kind": "callable", "name": "service", "target": f"{__name__}:no_judge"}
    found = findings(small_config(reward={"monitors": [monitor]}), tmp_path)
    assert [name for name, check in found.items() if not check.ok] == ["monitor service"]
    assert found["monitor service"].detail.endswith("TimeoutError: the service is out")


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize(
    ("value", "said"),
    [
        (float("nan"), "unet/diffusion_pytorch_model.safetensors has NaN or infinity as float32 in conv_out.bias"),
        (1e30, "NonFiniteError: non-finite latents (U-Net, step t = 0 of T = 4); "),
    ],
)
def test_what_is_no_number_is_told_in_one_line(
    small_config: Callable[..., Config], pipeline_dir: Path, tmp_path: Path, value: float, said: str
) -> None:
    shutil.copytree(pipeline_dir, tmp_path / "model")
    file = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    tensors["conv_out.bias"][0] = value
    save_file(tensors, file)
    *_, last = examine(small_config(policy={"model": str(tmp_path / "model")}), tmp_path / "run", tflops=1.0)
    assert (last.name, last.ok) == ("trial", False)
    assert said in last.detail
    assert "\n" not in last.detail


@pytest.mark.usefixtures("without_ray")
def test_a_first_step_without_a_finite_loss_is_told(small_config: Callable[..., Config], tmp_path: Path) -> None:
    *_, last = examine(small_config(train={"c": 1e38}), tmp_path / "run", tflops=1.0)
    assert (last.name, last.ok) == ("trial", False)
    assert last.detail == "NonFiniteStepError: the first gradient step has no finite loss or gradient"


def test_bad_inputs_end_the_examination(small_config: Callable[..., Config], tmp_path: Path) -> None:
    *_, last = examine(small_config(prompts={"train": "absent.txt"}), tmp_path, tflops=1.0)
    assert (last.name, last.ok) == ("model, scorer, prompts", False)
    assert "prompts.train=absent.txt: cannot be read" in last.detail


def test_a_missing_requirement_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "requires", lambda _: ["torch>=99", "no-such-package", "pytest; extra == 'test'"])
    (check,) = doctor._versions()
    assert not check.ok
    assert check.detail.endswith("is not >=99; no-such-package is missing")


@pytest.mark.usefixtures("without_ray")
def test_the_command_fails_where_a_check_fails(small_values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**small_values, "prompts": {"train": "absent.txt"}}))
    result = CliRunner().invoke(app, ["doctor", str(tmp_path / "c.yaml"), "--json"])
    assert result.exit_code == 1
    assert [json.loads(line)["ok"] for line in result.stdout.splitlines()][-1] is False
    assert "raydense: 1 of the checks failed" in result.stderr


@pytest.mark.ray
def test_it_looks_at_the_cluster_that_a_run_would_use(
    warm_python: Path, small_values: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(small_values))
    done = subprocess.run(  # a process of its own: this one may have joined the session's cluster
        [warm_python, "-m", "raydense.cli", "doctor", tmp_path / "c.yaml", "--json"],
        env={**os.environ, "RAY_ADDRESS": "127.0.0.1:1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (found,) = [check for check in map(json.loads, done.stdout.splitlines()) if check["name"] == "Ray"]
    assert not found["ok"]
    assert "nothing answers there" in found["detail"]
