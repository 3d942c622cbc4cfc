"""Checksums over weights, and what a group weighs."""

from __future__ import annotations

import numpy as np
import pytest

from raydense.core.types import PolicyWeights, TrajectoryGroup, tensor_checksum


def tensors() -> dict[str, np.ndarray]:
    return {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float32)}


def test_the_checksum_ignores_the_order_of_the_tensors_and_their_layout() -> None:
    reference = tensor_checksum(tensors())
    assert tensor_checksum(dict(reversed(tensors().items()))) == reference
    assert tensor_checksum({**tensors(), "a": np.asfortranarray(tensors()["a"])}) == reference
    assert len(reference) == 16
    assert int(reference, 16) >= 0


@pytest.mark.parametrize(
    "changed",
    [
        {**tensors(), "b": np.array([1, 1, 1, np.nextafter(np.float32(1), np.float32(2))], np.float32)},
        {**tensors(), "a": tensors()["a"].reshape(3, 2)},
        {**tensors(), "b": np.ones(4, np.float64)},
        {"a": tensors()["a"], "c": tensors()["b"]},
        {"a": tensors()["a"]},
    ],
    ids=["last bit", "shape", "dtype", "name", "missing"],
)
def test_the_checksum_sees_every_change(changed: dict[str, np.ndarray]) -> None:
    assert tensor_checksum(changed) != tensor_checksum(tensors())


def test_weights_carry_their_version_and_checksum() -> None:
    weights = PolicyWeights.of(3, tensors())
    assert (weights.version, weights.checksum) == (3, tensor_checksum(tensors()))


def test_a_group_holds_every_state_once() -> None:
    keep, steps, latent = 5, 50, (4, 64, 64)
    group = TrajectoryGroup(
        stage=0,
        index=0,
        prompt="a cat",
        conditioning={"prompt_embeds": np.zeros((77, 768), np.float32)},
        latents=np.zeros((keep, steps + 1, *latent), np.float16),
        log_probs=np.zeros((keep, steps), np.float32),
        rewards=np.zeros(keep, np.float32),
        weights_version=0,
        weights_checksum="",
    )
    # METHOD §7: 51 latents of 4·64·64 values of 2 bytes are 1.67 MB a trajectory
    states = keep * 51 * 4 * 64 * 64 * 2
    assert states == 5 * 1_671_168
    assert group.nbytes == states + keep * steps * 4 + keep * 4 + 77 * 768 * 4
