"""Bad input: exit code 2, one plain line that says what to do, before any actor starts and any directory is made."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from raydense.cli import app

UNET = "unet/diffusion_pytorch_model.safetensors"
SETTINGS = {  # --set …: what the line says
    # wrong types
    "seed=x": "seed='x': input should be a valid integer",
    "seed=1.5": "seed=1.5: input should be a valid integer",
    "seed=true": "seed=true should be a number, not true or false",
    "seed=-1": "seed=-1: input should be greater than or equal to 0",
    "name=[a]": "name=['a']: input should be a valid string",
    "train.lr=fast": "train.lr='fast': input should be a valid number",
    "train.lr=nan": "train.lr=nan: input should be a finite number",
    "train.lr=.inf": "train.lr=inf: input should be a finite number",
    "train.betas=0.9": "train.betas=0.9: input should be a valid",
    "train.betas=[0.9, 1]": "train.betas.1=1: input should be less than 1",
    "sampler.shared_noise=maybe": "sampler.shared_noise='maybe': input should be a valid boolean",
    "sampler.dtype=int8": "sampler.dtype='int8': input should be 'float32', 'bfloat16' or 'float16'",
    "sampler.latent_size=0": "sampler.latent_size: 0 is no size; give one number or [height, width]",
    "sampler.latent_size=[8]": "sampler.latent_size: [8] is no size; give one number or [height, width]",
    "sampler.latent_size=[8, 12, 4]": "sampler.latent_size: [8, 12, 4] is no size",
    "sampler.latent_size=[8, true]": "sampler.latent_size: [8, True] is no size",
    "sampler.latent_size=large": "sampler.latent_size: 'large' is no size",
    "sampler.latent_size=true": "latent_size=true should be a number, not true or false",
    "sampler.device=gpu": "sampler.device='gpu': string should match pattern '^(auto|cpu|mps|cuda",
    "stage=5": "stage=5: input should be a valid dictionary",
    "policy.lora_targets=[]": "policy.lora_targets=[]: tuple should have at least 1 item",
    # unknown keys
    "sead=1": "sead is not a setting; allowed here: name, seed",
    "train.cilp=1": "(did you mean clip?)",
    "steps.n_step=3": "steps.n_step is not a setting; allowed here: count, dynamics, eta, window, spacing, ga",
    "reward.scorer.modle=x": "reward.scorer.modle is not a setting; allowed here: kind, name, model",
    "seed.x=1": "seed is not a section",
    # scorers
    "reward.scorer.kind=hps": "reward.scorer.kind='hps': input should be one of 'clip', 'hpsv2'",
    "reward.scorer={name: x}": "reward.scorer.kind is missing; add it to the configuration",
    "reward.scorer={kind: clip, name: x}": "reward.scorer.model is missing; add it to the configuration",
    "reward.scorer={kind: hpsv2, version: v3}": "reward.scorer.version='v3': input should be 'v2.0' or 'v2.1'",
    "reward.scorer={kind: hpsv2, checkpoint: /absent.pt}": "scorer hpsv2: checkpoint=/absent.pt is not a file",
    "reward.scorer={kind: aesthetic, head: /absent.pth}": "scorer aesthetic: head=/absent.pth is not a file",
    "reward.scorer={kind: imagereward, checkpoint: /a.pt}": "scorer imagereward: checkpoint=/a.pt is not a file",
    "reward.scorer={kind: imagereward, tokenizer: /absent}": "scorer imagereward: tokenizer=/absent holds no vocab.txt",
    "reward.scorer={kind: callable, name: x, target: math}": "expected the function as module:function, got 'math'",
    "reward.scorer={kind: callable, name: x, target: 'no.module:f'}": "target=no.module:f cannot be imported",
    "reward.scorer={kind: callable, name: x, target: 'math:pi'}": "target=math:pi is not callable",
    "reward.scorer.model=/absent": "scorer clip: model=/absent is not a directory",
    "reward.monitors=[{kind: callable, name: clip, target: 'math:sin'}]": "names must differ, got ['clip', 'clip']",
    # impossible combinations
    "train.tuple_size=4": "train.tuple_size=4 exceeds sampler.keep=3; lower it or keep more trajectories",
    "train.tuple_size=1": "train.tuple_size=1: input should be greater than or equal to 2",
    "sampler.keep=5": "keep=5 exceeds trajectories=4; lower keep",
    "sampler.keep=1": "sampler.keep=1: input should be greater than or equal to 2",
    "train.batch_groups=6": "train.batch_groups=6 exceeds the 5 groups of a stage; lower it or raise stage.groups",
    "train.reg_to_pi_init=false": "the loss needs a reference policy",
    "steps.gamma=0": "steps.gamma=0: input should be greater than 0",
    "steps.gamma=1.01": "steps.gamma=1.01: input should be less than or equal to 1",
    "steps.draws=0": "steps.draws=0: input should be greater than or equal to 1",
    "steps.count=0": "steps.count=0: input should be greater than or equal to 1",
    "steps.count=1000": "steps.count=1000 does not fit the scheduler's 1000 timesteps; lower it",
    "steps.spacing=linspace": "steps.spacing='linspace': input should be 'leading' or 'trailing'",
    "steps.eta=0": "steps.eta=0: input should be greater than 0",
    "steps.exclude_last=4": "exclude_last=4 leaves no step of count=4; lower exclude_last",
    "policy.lora_targets=[to_q, to_qq]": "policy.lora_targets: 'to_qq' matches nothing in the U-Net",
    "policy.lora_targets=[conv1, norm1]": "policy.lora_targets: 'norm1' matches down_blocks.0.attentions.0.transformer",
    "policy.lora_targets=[attn1]": "which takes no LoRA; name linear layers and convolutions",
    "policy.text_encoder_lora=drop": "policy.text_encoder_lora='drop': input should be 'refuse' or 'leave_out'",
    # --set itself
    "seed": "--set 'seed': expected key=value, such as --set seed=1",
    "=3": "--set '=3': expected key=value",
    "seed=[1": "--set 'seed=[1': the value is not valid YAML",
    # files and models
    "policy.model=/absent": "policy.model=/absent is not a directory; give an existing one or a hub id",
    "policy.model=models/sd 15": "policy.model=models/sd 15 is not a directory; give an existing one or a hub id",
    "policy.model=C:/models": "policy.model=C:/models is not a directory",
    "policy.model=models/sd15": "policy.model=models/sd15 is no directory here, and cannot be had from the hub (tried",
    "reward.scorer.model=models/clip": "scorer clip: model=models/clip is no directory here, and cannot be had",
    "policy.init_lora=models/lora": "policy.init_lora=models/lora is not there; give a file, or a directory with one",
    "policy.model=pkg://no_package/x": "policy.model=pkg://no_package/x: no installed package 'no_package'",
    "prompts.train=absent.txt": "prompts.train=absent.txt: cannot be read (No such file or directory)",
    "prompts.train=set://paper": "prompts.train=set://paper: there is no such set; allowed: set://paper-train",
    "prompts.train=set://paper-train#index=4": "#index=4 is not one of its 4 prompts; allowed: 0 to 3",
    "prompts.unseen=set://paper-unseen#style=x": "#style= selects nothing here",
}
PROMPTS = {  # content of a prompt file: what the line says
    b"": "holds no prompt; give at least one",
    b"\n \n": "holds no prompt",
    b"a cat\n\na dog\n": "line 2 is empty; remove it",
    b"a cat\na \xff dog\n": "line 2 is not UTF-8; save the file as UTF-8",
    b"a hen\n": "prompts.unseen holds 'a hen', which prompts.train holds too; remove it from one",
}
FILES = {  # content of a configuration file: what the line says
    b"- 1\n": "must be a mapping of sections, got list",
    b"": "must be a mapping of sections, got NoneType",
    b"seed: [1\n": "is not valid YAML",
    b"seed: \xff\n": "is not UTF-8 text; save it as UTF-8",
    b"? [a]\n: b\n": "is not valid YAML: a key is no text",
    b"seed: 1\nseed: 2\n": "is not valid YAML: 'seed' is there twice",
}


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")


@pytest.fixture
def config(small_values: dict[str, Any], tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(small_values))
    return file


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["train", *map(str, arguments)])  # on Ray: it must not get so far


def check_refused(result: Result, said: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("raydense: ")
    assert result.stderr.count("\n") == 1
    assert said in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(("override", "said"), SETTINGS.items())
def test_a_setting(config: Path, tmp_path: Path, override: str, said: str) -> None:
    check_refused(run(config, "--set", override, "--out", tmp_path / "run"), said)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("content", "said"), PROMPTS.items())
def test_a_prompt_file(config: Path, tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "prompts.txt").write_bytes(content)
    result = run(config, "--set", f"prompts.train={tmp_path / 'prompts.txt'}", "--out", tmp_path / "run")
    check_refused(result, said)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("content", "said"), FILES.items())
def test_a_configuration_file(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "c.yaml").write_bytes(content)
    check_refused(run(tmp_path / "c.yaml"), f"{tmp_path / 'c.yaml'}: ")
    check_refused(run(tmp_path / "c.yaml"), said)


def test_a_configuration_that_is_a_directory_or_absent(tmp_path: Path) -> None:
    check_refused(run(tmp_path), "cannot be read (Is a directory); give an existing YAML file")
    check_refused(run(tmp_path / "absent.yaml"), "cannot be read (No such file or directory)")


def test_contradicting_arguments(config: Path) -> None:
    check_refused(
        run(config, "--preset", "tiny"),
        f"{config} and --preset=tiny: give one, not both; a file names its base by `preset: tiny` at its top",
    )
    check_refused(
        run("--preset", "tinny"),
        "--preset=tinny is unknown; allowed: flux-dev, multi-prompt, sd35-medium, sdxl, single-prompt, tiny, tiny-flow",
    )
    check_refused(run("--resume", "x", "--preset", "tiny"), "has its own configuration and directory")
    check_refused(run("--resume", "absent"), "--resume=absent holds no config.yaml; give the directory of a run")


def _spoil_scheduler(model: Path, **values: Any) -> None:
    file = model / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def _drop_tensor(file: Path, name: str) -> None:
    save_file({key: tensor.clone() for key, tensor in load_file(file).items() if key != name}, file)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda m: _spoil_scheduler(m, set_alpha_to_one=True, steps_offset=0), "undefined; set steps.spacing=leading"),
        (lambda m: _spoil_scheduler(m, _class_name="FlowMatchEulerDiscreteScheduler"), "is of flow matching"),
        (lambda m: _spoil_scheduler(m, prediction_type="flow"), "prediction_type=flow is not one of"),
        (lambda m: (m / "scheduler" / "scheduler_config.json").write_text("{"), "scheduler_config.json ends early"),
        (
            lambda m: _spoil_scheduler(m, beta_schedule="x"),
            "scheduler/scheduler_config.json: beta_schedule='x' cannot be used (x is not implemented",
        ),
        (
            lambda m: _drop_tensor(m / UNET, "conv_out.weight"),
            f"{UNET} is not this UNet2DConditionModel; 1 missing: conv_out.weight",
        ),
        (lambda m: (m / UNET).write_bytes((m / UNET).read_bytes()[:-9]), f"{UNET} is cut off: "),
        (lambda m: (m / "tokenizer" / "tokenizer.json").write_text(""), "tokenizer/tokenizer.json is empty; download"),
        (lambda m: shutil.rmtree(m / "vae"), "has no vae/; give a whole pipeline directory"),
    ],
)
def test_a_pipeline(config: Path, pipeline_dir: Path, tmp_path: Path, spoil: Callable[[Path], Any], said: str) -> None:
    shutil.copytree(pipeline_dir, tmp_path / "model")
    spoil(tmp_path / "model")
    check_refused(run(config, "--set", f"policy.model={tmp_path / 'model'}", "--out", tmp_path / "run"), said)
    assert not (tmp_path / "run").exists()


def test_a_scorer_with_a_tensor_missing(config: Path, scorer_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(scorer_dir, tmp_path / "scorer")
    _drop_tensor(tmp_path / "scorer" / "model.safetensors", "visual_projection.weight")
    result = run(config, "--set", f"reward.scorer.model={tmp_path / 'scorer'}", "--out", tmp_path / "run")
    check_refused(result, "model.safetensors is not this CLIPModel; 1 missing: visual_projection.weight")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("{tmp}", "is not empty and is never overwritten; give a new directory"),
        ("{tmp}/small.yaml", "is not empty and is never overwritten"),
        ("{tmp}/small.yaml/run", "cannot be written (Not a directory); give another directory"),
        ("/proc/run", "cannot be written (No such file or directory); give another directory"),
        ("nonsense://bucket/run", "--out=nonsense://bucket/run cannot be reached"),
    ],
)
def test_an_output_directory(config: Path, tmp_path: Path, location: str, said: str) -> None:
    check_refused(run(config, "--out", location.format(tmp=tmp_path)), said)


def test_a_full_disk(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    check_refused(run(config, "--out", tmp_path / "run"), "cannot be written (No space left on device)")


def test_a_relative_output_under_a_ray_job(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    check_refused(run(config, "--out", "runs/one"), "--out=runs/one is relative, but a Ray job works in a copy")
    check_refused(run(config), "--out is missing, but a Ray job works in a copy that Ray deletes")


def test_an_error_of_ours_is_no_bad_input(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ValueError("shapes [2] and [3] differ")

    monkeypatch.setattr("raydense.training.run._Run.execute", broken)
    result = run(config, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert result.stderr == "raydense: shapes [2] and [3] differ (ValueError; --debug shows where)\n"
    assert isinstance(run(config, "--out", tmp_path / "two", "--debug").exception, ValueError)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("train", "--set", "sead=1"), 2, "(did you mean seed?)"),
        (("train", "--outt", "x"), 2, "No such option"),
        (("trian",), 2, "No such command"),
        (("train", "--help"), 0, "Exit codes: 0 done, 1 failed, 2 bad input"),
    ],
)
def test_the_installed_command(warm_python: Path, arguments: tuple[str, ...], code: int, said: str) -> None:
    command = [warm_python, Path(sys.executable).with_name("raydense"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == code
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
