"""Checkpoints: complete, verified, and whole or absent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raydense.core.types import PolicyWeights, Position
from raydense.records.checkpoint_files import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint


def trained(steps: int = 3) -> tuple[torch.optim.Optimizer, dict[str, Any]]:
    """An AdamW after some steps, and the learner's state around it."""
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(2, 3)), torch.nn.Parameter(torch.randn(4))]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, betas=(0.8, 0.95), weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        sum((p**3).sum() for p in parameters).backward()
        optimizer.step()
    weights = PolicyWeights.of(steps, {f"p{i}": p.detach().numpy().copy() for i, p in enumerate(parameters)})
    references = {"stage": torch.tensor(1), "log_probs": torch.tensor([[[0.5, torch.nan]]])}
    state = {"step": steps, "skipped": 1, "weights": weights, "optimizer": optimizer.state_dict()}
    return optimizer, {**state, "references": references}


def checkpoint(state: dict[str, Any], behaviour: PolicyWeights | None = None) -> Checkpoint:
    return Checkpoint(state, Position(stages=1, steps=2 if behaviour else 0), behaviour, metrics_bytes=123)


def test_what_was_saved_comes_back_bit_for_bit(tmp_path: Path) -> None:
    _, state = trained()
    save_checkpoint(tmp_path / "stage-0001", checkpoint(state))
    whole = load_checkpoint(tmp_path / "stage-0001")
    assert (whole.position, whole.behaviour, whole.metrics_bytes) == (Position(1, 0), None, 123)
    loaded = whole.learner
    assert (loaded["step"], loaded["skipped"]) == (3, 1)
    assert (loaded["weights"].version, loaded["weights"].checksum) == (3, state["weights"].checksum)
    for name, array in state["weights"].tensors.items():
        assert np.array_equal(loaded["weights"].tensors[name], array)
    for index, entry in state["optimizer"]["state"].items():
        for name, value in entry.items():
            assert torch.equal(loaded["optimizer"]["state"][index][name], value), (index, name)
    assert loaded["references"].keys() == state["references"].keys()
    for name, tensor in state["references"].items():
        np.testing.assert_array_equal(loaded["references"][name], tensor)


def test_an_optimizer_goes_on_from_its_saved_moments(tmp_path: Path) -> None:
    optimizer, state = trained()
    save_checkpoint(tmp_path / "c", checkpoint(state))
    parameters = [torch.nn.Parameter(p.detach().clone()) for p in optimizer.param_groups[0]["params"]]
    other = torch.optim.AdamW(parameters, lr=99.0)
    other.load_state_dict(load_checkpoint(tmp_path / "c").learner["optimizer"])
    for which in (optimizer, other):
        for parameter in which.param_groups[0]["params"]:
            parameter.grad = torch.ones_like(parameter)
        which.step()
    for ours, theirs in zip(parameters, optimizer.param_groups[0]["params"], strict=True):
        assert torch.equal(ours, theirs)


def test_equal_states_give_equal_lora_files(tmp_path: Path) -> None:
    _, state = trained()
    backwards = PolicyWeights.of(3, dict(reversed(state["weights"].tensors.items())))
    save_checkpoint(tmp_path / "a", checkpoint(state))
    save_checkpoint(tmp_path / "b", checkpoint({**state, "weights": backwards}))
    assert (tmp_path / "a/lora.safetensors").read_bytes() == (tmp_path / "b/lora.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["lora.safetensors", "optimizer.safetensors", "references.safetensors"])
@pytest.mark.parametrize("how", ["one bit", "cut short", "gone"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, how: str) -> None:
    _, state = trained()
    save_checkpoint(tmp_path / "c", checkpoint(state))
    file = tmp_path / "c" / name
    content = bytearray(file.read_bytes())
    if how == "one bit":
        content[-1] ^= 1
        file.write_bytes(content)
    elif how == "cut short":
        file.write_bytes(content[:-8])
    else:
        file.unlink()
    with pytest.raises(CheckpointError, match=rf"{name}: is missing or damaged"):
        load_checkpoint(tmp_path / "c")


@pytest.mark.parametrize("content", [None, "", '{"step": 3'])
def test_without_a_whole_manifest_there_is_no_checkpoint(tmp_path: Path, content: str | None) -> None:
    _, state = trained()
    save_checkpoint(tmp_path / "c", checkpoint(state))
    manifest = tmp_path / "c" / "manifest.json"
    manifest.unlink() if content is None else manifest.write_text(content)
    with pytest.raises(CheckpointError, match=r"manifest\.json: cannot be read"):
        load_checkpoint(tmp_path / "c")


def test_a_half_written_checkpoint_is_never_seen_under_its_name(tmp_path: Path) -> None:
    (tmp_path / "c.partial").mkdir()
    (tmp_path / "c.partial" / "lora.safetensors").write_bytes(b"of a run that was killed here")
    _, state = trained()
    save_checkpoint(tmp_path / "c", checkpoint(state))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c"]
    assert load_checkpoint(tmp_path / "c").learner["step"] == 3


def test_inside_a_stage_the_weights_it_was_sampled_with_come_along(tmp_path: Path) -> None:
    _, state = trained()
    behaviour = PolicyWeights.of(1, {"p0": np.full((2, 3), 0.5, np.float32)})
    save_checkpoint(tmp_path / "c", checkpoint(state, behaviour))
    loaded = load_checkpoint(tmp_path / "c")
    assert loaded.position == Position(1, 2)
    assert loaded.behaviour is not None
    assert (loaded.behaviour.version, loaded.behaviour.checksum) == (1, behaviour.checksum)
    assert np.array_equal(loaded.behaviour.tensors["p0"], behaviour.tensors["p0"])


def test_saving_the_same_position_again_replaces_it(tmp_path: Path) -> None:
    for steps in (3, 4):
        save_checkpoint(tmp_path / "c", checkpoint(trained(steps)[1]))
    assert load_checkpoint(tmp_path / "c").learner["step"] == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c"]


def test_all_that_a_stage_knows_comes_back(tmp_path: Path) -> None:
    _, state = trained()
    old, began = (PolicyWeights.of(v, {"p0": np.full((2, 3), v, np.float32)}) for v in (1, 2))
    record = {"ledger": {"issued": 4}, "outstanding": {"units": [1, 3], "weights_version": 2}, "segments": ["a.arrow"]}
    save_checkpoint(
        tmp_path / "c", Checkpoint(state, Position(1, 2), old, 123, began=began, record=record, config="seed: 1\n")
    )
    loaded = load_checkpoint(tmp_path / "c")
    assert loaded.behaviour is not None
    assert loaded.began is not None
    assert [w.checksum for w in (loaded.behaviour, loaded.began)] == [old.checksum, began.checksum]
    assert (loaded.record, loaded.config) == (record, "seed: 1\n")


def test_the_manifest_says_what_the_checkpoint_is(tmp_path: Path) -> None:
    _, state = trained()
    save_checkpoint(tmp_path / "c", checkpoint(state))
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    assert manifest["step"] == 3
    assert manifest["weights"] == {"version": 3, "checksum": state["weights"].checksum}
    assert manifest["position"] == {"stages": 1, "steps": 0}
    files = ["config.yaml", "lora.safetensors", "optimizer.safetensors", "references.safetensors"]
    assert sorted(manifest["sha256"]) == files
