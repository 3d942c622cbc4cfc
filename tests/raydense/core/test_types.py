"""Checksums over weights, and what a group weighs."""

from __future__ import annotations

import numpy as np
import pytest

from raydense.core.types import (
    PolicyWeights,
    RenderUnit,
    TrajectoryGroup,
    WorkUnit,
    averaged_version,
    stored_states,
    tensor_checksum,
)


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


@pytest.mark.parametrize(
    ("drawn", "num_steps", "states", "learnable"),
    [
        (range(4), 4, [0, 1, 2, 3, 4], range(4)),
        (range(3), 4, [0, 1, 2, 3, 4], range(4)),  # the last step's states are here anyway
        (range(2), 4, [0, 1, 2, 4], range(2)),
        (range(1, 3), 5, [1, 2, 3, 5], range(1, 3)),
        (range(2, 5), 5, [2, 3, 4, 5], range(2, 5)),
        (range(3, 4), 5, [3, 4, 5], range(3, 5)),
    ],
)
def test_stored_are_the_states_that_the_loss_can_draw_and_the_last(
    drawn: range, num_steps: int, states: list[int], learnable: range
) -> None:
    assert stored_states(drawn, num_steps) == states
    latents = np.array(states, np.float16)[None, :, None, None, None]
    group = TrajectoryGroup(
        stage=0, index=0, prompt="", conditioning={}, latents=latents, log_probs=np.zeros((1, num_steps), np.float32),
        rewards=np.zeros(1, np.float32), weights_version=0, weights_checksum="", first_step=drawn.start,
    )  # fmt: skip
    assert group.steps == learnable
    assert set(drawn) <= set(group.steps)
    for step in drawn:
        assert (group.state(0, step), group.state(0, step + 1)) == (step, step + 1)


def test_work_is_listed_by_the_terms_of_algorithm_1() -> None:
    unit = WorkUnit(3, 12, (24, 25), ("a cat", "a dog"), 120)
    assert unit.task == "sample stage 3 unit 12"
    assert RenderUnit(("a cat",) * 4, (32, 33, 34, 35), 120).task == "judge weights 120 pictures 32 to 35"
    assert RenderUnit(("a cat",), (7,), averaged_version(120)).task == "judge averaged weights 120 pictures 7 to 7"
