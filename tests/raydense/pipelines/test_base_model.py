"""The base model is known by its bytes: on every node the same, or the node is named."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest

from raydense.config import ConfigError
from raydense.pipelines.base_model import LEARNED_WITH, BaseModel, differing, model_checksums
from raydense.pipelines.pipeline_files import FOLDERS


@pytest.fixture
def pipeline(pipeline_dir: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(pipeline_dir, tmp_path / "pipeline"))


def test_a_directory_is_known_by_folder(pipeline: Path) -> None:
    found = model_checksums(str(pipeline), None, FOLDERS)
    assert sorted(found) == ["scheduler", "text_encoder", "tokenizer", "unet", "vae"]
    assert len(set(found.values())) == len(found)
    assert model_checksums(str(pipeline), None, LEARNED_WITH) == {f: c for f, c in found.items() if f != "vae"}
    copy = shutil.copytree(pipeline, pipeline.with_name("copy"))
    assert model_checksums(str(copy), None, FOLDERS) == found


@pytest.mark.parametrize(
    ("changed", "folder"),
    [
        ("unet/diffusion_pytorch_model.safetensors", "unet"),
        ("unet/config.json", "unet"),
        ("vae/diffusion_pytorch_model.safetensors", "vae"),
        ("text_encoder/model.safetensors", "text_encoder"),
        ("tokenizer/merges.txt", "tokenizer"),
        ("scheduler/scheduler_config.json", "scheduler"),
        ("unet/diffusion_pytorch_model.fp16.safetensors", "unet"),  # a new file, which may be loaded
    ],
)
def test_a_changed_file_is_found_in_its_folder(pipeline: Path, changed: str, folder: str) -> None:
    before = model_checksums(str(pipeline), None, FOLDERS)
    with (pipeline / changed).open("ab") as file:
        file.write(b" ")
    assert differing(before, model_checksums(str(pipeline), None, FOLDERS)) == [folder]


@pytest.mark.parametrize("unread", ["unet/README.md", "model_index.json", "safety_checker/config.json"])
def test_what_is_not_loaded_does_not_count(pipeline: Path, unread: str) -> None:
    before = model_checksums(str(pipeline), None, FOLDERS)
    (pipeline / unread).parent.mkdir(exist_ok=True)
    (pipeline / unread).write_text("{}")
    assert model_checksums(str(pipeline), None, FOLDERS) == before


@pytest.mark.parametrize("file", ["unet/config.json", "transformer/config.json", "config.json", "model_index.json"])
def test_a_model_of_the_hub_is_known_by_its_commit(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert model_checksums("owner/name") == {}
    commit, repository = "0" * 40, tmp_path / "models--owner--name"
    path = repository / "snapshots" / commit / file
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    assert model_checksums("owner/name", None, FOLDERS) == {"commit": commit}
    assert model_checksums("owner/name", "v2") == {}


@pytest.mark.parametrize("location", ["/absent/pipeline", "pkg://no_package/x", "absent/a/b"])
def test_of_what_is_not_there_nothing_is_known(location: str) -> None:
    assert model_checksums(location, None, FOLDERS) == {}


@pytest.mark.parametrize(
    ("before", "now", "found"),
    [
        ({"unet": "a", "vae": "b"}, {"unet": "a", "vae": "b"}, []),
        ({"unet": "a", "vae": "b"}, {"unet": "x", "vae": "b"}, ["unet"]),
        ({"unet": "a", "vae": "b"}, {"unet": "a"}, []),  # the learner has no decoder
        ({"unet": "a"}, {"unet": "a", "vae": "b"}, []),
        ({}, {"unet": "a"}, []),
        ({"unet": "a"}, {}, []),
        ({"unet": "a", "vae": "b"}, {"commit": "c"}, ["commit"]),
        ({"commit": "c"}, {"unet": "a", "vae": "b"}, ["unet", "vae"]),
    ],
)
def test_only_what_is_known_twice_can_differ(before: dict[str, str], now: dict[str, str], found: list[str]) -> None:
    assert differing(before, now) == found


def test_a_node_with_other_files_is_named() -> None:
    base = BaseModel("/models/sd", None, {"unet": "a"})
    base.admit("learner", "node 10.0.0.1", {"unet": "a", "vae": "b"})
    assert base.known == {"unet": "a", "vae": "b"}
    with pytest.raises(ConfigError) as caught:
        base.admit("sampler-1", "node 10.0.0.2", {"unet": "x", "vae": "b"})
    assert str(caught.value) == (
        "policy.model=/models/sd: on node 10.0.0.2, sampler-1 loaded another unet than the run began with; put the "
        "same files there on every node"
    )
    with pytest.raises(ConfigError, match=r"sampler-2 loaded another vae than learner on node 10\.0\.0\.1"):
        base.admit("sampler-2", "node 10.0.0.2", {"unet": "a", "vae": "x"})
    assert base.known == {"unet": "a", "vae": "b"}


def test_the_first_report_decides_where_the_driver_has_no_files() -> None:
    base = BaseModel("owner/name")
    base.admit("sampler-0", "node 10.0.0.1", {"commit": "a"})
    with pytest.raises(ConfigError, match=r"sampler-1 loaded another commit than sampler-0 on node 10\.0\.0\.1; put"):
        base.admit("sampler-1", "node 10.0.0.2", {"commit": "b"})


def test_the_look_travels_to_other_nodes(pipeline: Path) -> None:
    look = pickle.loads(pickle.dumps(BaseModel(str(pipeline)).look()))
    assert look() == model_checksums(str(pipeline), None, FOLDERS)
    assert BaseModel().look()() == {}
