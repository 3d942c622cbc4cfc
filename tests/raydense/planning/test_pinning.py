"""What a run was made from is found again wherever it lies, or missed by name."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raydense.config import Config, ConfigError
from raydense.planning.pinning import Pinned, continue_inputs, inputs_of, pin_inputs
from raydense.planning.preflight import check_inputs
from raydense.planning.units import read_prompt_sets
from raydense.records.run_dir import RunDirectory

SCORER = "def bright(images, prompts):\n    return images.mean(axis=(1, 2, 3))\n"


@pytest.fixture
def project(
    pipeline_dir: Path, scorer_dir: Path, small_config: Callable[..., Config], tmp_path: Path, monkeypatch: Any
) -> Config:
    """A configuration of relative paths, in a current directory that has them all."""
    home = tmp_path / "home"
    shutil.copytree(pipeline_dir, home / "models" / "sd")
    shutil.copytree(scorer_dir, home / "clip")
    (home / "train.txt").write_text("a cat\na dog\na hen\n")
    (home / "unseen.csv").write_text("prompt\na cow\na fox\n")
    (home / "pinned_scorer.py").write_text(SCORER)
    (home / "head.pt").write_bytes(b"head")
    (home / "init").mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (home / "init" / name).write_bytes(b"lora")
    monkeypatch.chdir(home)
    monkeypatch.syspath_prepend(str(home))
    components = [
        {"weight": 1, "scorer": {"kind": "clip", "name": "clip", "model": "clip"}},
        {"weight": 2, "scorer": {"kind": "callable", "name": "bright", "target": "pinned_scorer:bright"}},
    ]
    monitors = [
        {"kind": "aesthetic", "name": "aesthetic", "head": "head.pt", "clip_model": "owner/hub-id"},
        {"kind": "hpsv2", "name": "hpsv2"},
        {"kind": "http", "name": "http", "url": "http://localhost:1/"},
    ]
    return small_config(
        policy={"model": "models/sd", "init_lora": "init"},
        prompts={"train": "train.txt#index=1", "unseen": "unseen.csv"},
        reward={"scorer": {"kind": "mixture", "components": components}, "monitors": monitors},
    )


def begin(config: Config, root: Path) -> RunDirectory:
    """A run directory with what `config` reads now."""
    run, pinned = RunDirectory.create(root, config), pin_inputs(config)
    prompts = {"train": ["a dog"], "unseen": ["a cow", "a fox"]}
    run.write_inputs(pinned.pins, prompts)
    return run


def proceed(config: Config, run: RunDirectory, accept: bool = False, leave_out: tuple[str, ...] = ()) -> Pinned:
    return continue_inputs(config, run, accept_changes=accept, leave_out=leave_out)


def test_every_file_that_a_configuration_names_is_pinned(project: Config, tmp_path: Path) -> None:
    pins = pin_inputs(project).pins
    home = tmp_path / "home"
    assert {setting: (pin.written, pin.resolved, sorted(pin.sha256)) for setting, pin in pins.items()} == {
        "prompts.train": ("train.txt#index=1", f"{home}/train.txt#index=1", ["."]),
        "prompts.unseen": ("unseen.csv", f"{home}/unseen.csv", ["."]),
        "policy.model": ("models/sd", f"{home}/models/sd", ["scheduler", "text_encoder", "tokenizer", "unet", "vae"]),
        "policy.init_lora": ("init", f"{home}/init", ["adapter_config.json", "adapter_model.safetensors"]),
        "scorer clip: model": ("clip", f"{home}/clip", ["."]),
        "scorer bright: target": ("pinned_scorer:bright", "pinned_scorer:bright", ["."]),
        "scorer aesthetic: clip_model": ("owner/hub-id", "owner/hub-id", []),
        "scorer aesthetic: head": ("head.pt", f"{home}/head.pt", ["."]),
    }


def test_prompts_are_pinned_as_they_were_read(project: Config, tmp_path: Path) -> None:
    before, sets = pin_inputs(project), read_prompt_sets(project)
    assert pin_inputs(project, sets) == before
    for name in ("train.txt", "unseen.csv"):
        (tmp_path / "home" / name).write_text("prompt\nanother\n")
    assert pin_inputs(project, sets) == before


@pytest.mark.parametrize("file", ["own_scorer.py", "own_scorer/__init__.py", "own/scorer.py"])
def test_a_function_in_the_current_directory_is_pinned_before_it_is_imported(
    file: str, small_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in sys.path if path not in ("", ".", str(tmp_path))])
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(SCORER)
    module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    scorer = {"kind": "callable", "name": "bright", "target": f"{module}:bright"}
    config = small_config(reward={"scorer": scorer})
    before = pin_inputs(config).pins["scorer bright: target"].sha256
    assert list(before) == ["."]
    (tmp_path / file).write_text(SCORER + "\n")
    assert pin_inputs(config).pins["scorer bright: target"].sha256 not in (before, {})


def test_where_each_lies_is_a_setting(project: Config) -> None:
    values = project.model_dump(mode="json")
    for one in inputs_of(project):
        found: Any = values
        for key in one.keys:
            found = found[key]
        assert found == one.written


CHANGES = {  # file: the setting that is named
    "train.txt": "prompts.train={home}/train.txt#index=1",
    "unseen.csv": "prompts.unseen={home}/unseen.csv",
    "models/sd/unet/diffusion_pytorch_model.safetensors": "policy.model={home}/models/sd (unet)",
    "models/sd/vae/config.json": "policy.model={home}/models/sd (vae)",
    "init/adapter_config.json": "policy.init_lora={home}/init (adapter_config.json)",
    "clip/model.safetensors": "scorer clip: model={home}/clip",
    "clip/processor_config.json": "scorer clip: model={home}/clip",
    "pinned_scorer.py": "scorer bright: target=pinned_scorer:bright",
    "head.pt": "scorer aesthetic: head={home}/head.pt",
}


@pytest.mark.parametrize("file", CHANGES)
def test_what_has_changed_is_named_and_accepted_only_if_asked(project: Config, tmp_path: Path, file: str) -> None:
    run, path = begin(project, tmp_path / "run"), tmp_path / "home" / file
    old = path.read_bytes()
    path.write_bytes(b"prompt\na bird\na worm\n" if "prompt" in CHANGES[file] else old + b" ")
    named = CHANGES[file].format(home=tmp_path / "home")
    with pytest.raises(ConfigError) as caught:
        proceed(project, run)
    assert f"{run.root} was made from other files than lie there now: {named}; put" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert ("the run has a copy" in str(caught.value)) == named.startswith("prompts.")

    accepted = proceed(project, run, accept=True)
    assert accepted.accepted == (named,)
    run.write_inputs(accepted.pins, {}, accepted.accepted)
    if not named.startswith("prompts."):  # whose copy is the run's to write anew
        assert proceed(project, run).accepted == ()
    path.write_bytes(old)
    if not named.startswith("prompts."):
        with pytest.raises(ConfigError, match="was made from other files"):
            proceed(project, run)


def test_several_changes_are_one_line(project: Config, tmp_path: Path) -> None:
    run = begin(project, tmp_path / "run")
    (tmp_path / "home" / "head.pt").write_bytes(b"other")
    (tmp_path / "home" / "unseen.csv").write_text("no column\n")
    with pytest.raises(ConfigError, match=r"^[^\n]*prompts.unseen=[^\n]*, scorer aesthetic: head=[^\n]*$"):
        proceed(project, run)


def test_relative_paths_are_found_from_anywhere(project: Config, tmp_path: Path, monkeypatch: Any) -> None:
    run, home = begin(project, tmp_path / "run"), tmp_path / "home"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = proceed(project, run).config
    assert found.policy.model == f"{home}/models/sd"
    assert found.policy.init_lora == f"{home}/init"
    assert found.prompts.train == f"{run.root}/prompts/train.jsonl"
    assert found.reward.judges[0].model_dump()["model"] == f"{home}/clip"
    assert check_inputs(found.model_copy(update={"reward": found.reward.model_copy(update={"monitors": ()}),
        "policy": found.policy.model_copy(update={"init_lora": None})})).prompts.train == ("a dog",)  # fmt: skip


def test_the_path_as_written_is_tried_next_and_the_checksum_decides(
    project: Config, tmp_path: Path, monkeypatch: Any
) -> None:
    """As in a job, whose working directory is another one each time."""
    run, home, again = begin(project, tmp_path / "run"), tmp_path / "home", tmp_path / "again"
    shutil.copytree(home, again)
    monkeypatch.chdir(again)
    (home / "clip" / "config.json").write_text("{}")  # there, and not what it was
    shutil.rmtree(home / "models")  # gone
    found = proceed(project, run)
    assert found.accepted == ()
    assert found.config.policy.model == "models/sd"
    assert found.config.reward.judges[0].model_dump()["model"] == "clip"
    assert found.config.policy.init_lora == f"{home}/init"
    (again / "clip" / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match=f"scorer clip: model={home}/clip; put"):
        proceed(project, run)


def test_prompts_that_have_gone_are_the_runs_own(project: Config, tmp_path: Path) -> None:
    run = begin(project, tmp_path / "run")
    for file in ("train.txt", "unseen.csv"):
        (tmp_path / "home" / file).unlink()
    found = proceed(project, run)
    assert (found.accepted, found.config.prompts.unseen) == ((), f"{run.root}/prompts/unseen.jsonl")
    (run.root / "prompts" / "unseen.jsonl").write_text('{"prompt": "a forgery"}\n')
    with pytest.raises(ConfigError, match=r"^prompts.unseen=unseen.csv has gone: there is no .*home/unseen.csv nor un"):
        proceed(project, run)


@pytest.mark.parametrize(("gone", "setting"), [("models/sd", "policy.model"), ("clip", "scorer clip: model")])
def test_other_files_that_have_gone_are_missed(project: Config, tmp_path: Path, gone: str, setting: str) -> None:
    run = begin(project, tmp_path / "run")
    shutil.rmtree(tmp_path / "home" / gone)
    with pytest.raises(ConfigError, match=f"^{setting}={gone} has gone: there is no {tmp_path}/home/{gone} nor {gone}"):
        proceed(project, run, accept=True)


def test_a_damaged_copy_of_the_prompts_is_not_read(project: Config, tmp_path: Path) -> None:
    run = begin(project, tmp_path / "run")
    (run.root / "prompts" / "train.jsonl").write_text('{"prompt": "a forgery"}\n')
    assert proceed(project, run).config.prompts.train == f"{tmp_path}/home/train.txt#index=1"


def test_what_is_left_out_is_not_compared(project: Config, tmp_path: Path) -> None:
    run = begin(project, tmp_path / "run")
    (tmp_path / "home" / "train.txt").write_text("x\ny\n")
    (tmp_path / "home" / "head.pt").write_bytes(b"other")
    found = proceed(project, run, leave_out=("prompts.", "scorer "))
    assert found.accepted == ()
    assert found.config.prompts.train == f"{run.root}/prompts/train.jsonl"


def test_locations_that_the_user_changed_are_the_users(project: Config, tmp_path: Path) -> None:
    run = begin(project, tmp_path / "run")
    other = project.model_copy(update={"policy": project.policy.model_copy(update={"model": "clip"})})
    found = proceed(other, run)
    assert found.config.policy.model == "clip"
    assert found.pins["policy.model"] == pin_inputs(other).pins["policy.model"]


def test_a_run_from_before_is_pinned_as_it_is_and_says_so(project: Config, tmp_path: Path) -> None:
    found = proceed(project, RunDirectory.create(tmp_path / "run", project))
    assert found.config == project
    assert found.pins == pin_inputs(project).pins
    assert found.notes == (
        f"{tmp_path}/run keeps no record of what it was made from; what lies there now is taken for it",
    )


def test_what_is_reported_later_joins_what_is_known(project: Config, tmp_path: Path) -> None:
    pinned = pin_inputs(project.model_copy(update={"policy": project.policy.model_copy(update={"model": "owner/x"})}))
    base = pinned.base_model()
    base.admit("sampler-0", "a node", {"commit": "c"})
    assert pinned.pins["policy.model"].sha256 == {}
    assert pinned.recorded(base).pins["policy.model"].sha256 == {"commit": "c"}
