"""Gradient steps: what they compute, that any cut gives the same run, and that state survives a round trip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from learner import clips, losses, references, sgd_learner
from learner.clips import AutoClip
from learner.references import ReferenceCache
from learner.sgd_learner import MAX_SKIPPED, NonFiniteStepError, SGDLearner
from raydense.core.types import Position, TrajectoryGroup
from raydense.diffusion.live_lora import LoraBeside
from raydense.diffusion.policy import Policy
from raydense.diffusion.transfers import to_device
from raydense.families.conditioning import each
from raydense.records.checkpoint_files import Checkpoint, load_checkpoint, save_checkpoint

Groups = list[TrajectoryGroup]
Learner = SGDLearner[TrajectoryGroup]


@pytest.fixture(scope="module")
def groups(make_policy: Callable[..., Policy], make_groups: Callable[..., Groups]) -> Groups:
    return make_groups(make_policy(), count=5, keep=3)


@pytest.fixture
def begin(
    make_policy: Callable[..., Policy], make_learner: Callable[..., Learner], groups: Groups
) -> Callable[..., tuple[Policy, Learner]]:
    """A fresh policy and a learner on it that has begun stage 0: begin(lr=1e-3)."""

    def start(**changes: Any) -> tuple[Policy, Learner]:
        policy = make_policy()
        learner = make_learner(policy, **changes)
        learner.begin_stage(0, groups)
        return policy, learner

    return start


def gradients(policy: Policy) -> dict[str, np.ndarray]:
    return {n: p.grad.numpy().copy() for n, p in policy.network.named_parameters() if p.grad is not None}


def norm(tensors: dict[str, np.ndarray]) -> float:
    return float(np.sqrt(sum((t.astype(np.float64) ** 2).sum() for t in tensors.values())))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=str)
def test_micro_batches_accumulate_the_whole_batchs_gradient(
    make_policy: Callable[..., Policy],
    make_learner: Callable[..., Learner],
    groups: Groups,
    perturbed: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    start = [torch.from_numpy(v) for v in perturbed(make_policy(), scale=0.05).tensors.values()]
    if dtype == torch.float64:  # wherever float32 is asked for
        monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    found = {}
    for micro_batch in (None, 1, 2, 3):
        policy = make_policy(dtype=dtype)
        learner = make_learner(policy, micro_batch=micro_batch, batch_groups=5, max_grad_norm=1e9)
        learner.begin_stage(0, groups)
        with torch.no_grad():  # `bind` is for float32
            for parameter, value in zip(policy.parameters(), start, strict=True):
                parameter.copy_(value)
        (row,) = learner.train(1)
        found[micro_batch] = gradients(policy), row.values
        assert {g.dtype for g in found[micro_batch][0].values()} == {np.dtype(str(dtype).removeprefix("torch."))}
    whole, values = found.pop(None)
    for parts, part_values in found.values():
        assert norm({n: parts[n] - whole[n] for n in whole}) <= tolerance * norm(whole)
        assert part_values == {name: pytest.approx(value, rel=1e-5, abs=1e-9) for name, value in values.items()}


def test_a_run_cut_anywhere_is_the_same_run(begin: Callable[..., tuple[Policy, Learner]]) -> None:
    _, whole = begin()
    _, cut = begin()
    rows = whole.train(3)
    assert cut.train(2) + cut.train(1) == rows
    assert whole.weights().checksum == cut.weights().checksum
    assert [row.step for row in rows] == [1, 2, 3]


def test_a_learner_restored_from_disk_goes_on_as_if_never_stopped(
    begin: Callable[..., tuple[Policy, Learner]], groups: Groups, tmp_path: Path
) -> None:
    _, whole = begin()
    whole.train(2)
    save_checkpoint(tmp_path / "checkpoint", Checkpoint(whole.state_dict(), Position(0, 2), None, 0))
    rows = whole.train(2)

    _, restored = begin()
    restored.load_state_dict(load_checkpoint(tmp_path / "checkpoint").learner)
    assert restored.weights().version == 2
    assert restored.train(2) == rows
    assert restored.weights().checksum == whole.weights().checksum


def test_the_version_is_the_number_of_steps_taken(begin: Callable[..., tuple[Policy, Learner]]) -> None:
    _, learner = begin()
    before = learner.weights()
    learner.train(2)
    after = learner.weights()
    assert (before.version, after.version) == (0, 2)
    assert before.checksum != after.checksum


def test_the_step_is_adamws(begin: Callable[..., tuple[Policy, Learner]], perturbed: Callable[..., Any]) -> None:
    lr, decay, eps, (beta1, beta2) = 1e-2, 0.1, 1e-8, (0.9, 0.99)
    policy, learner = begin(lr=lr, weight_decay=decay, betas=(beta1, beta2), eps=eps, max_grad_norm=1e9)
    policy.bind(perturbed(policy, scale=0.05))
    expected = {n: a.astype(np.float64) for n, a in policy.weights().tensors.items()}
    moments = {n: (np.zeros_like(a), np.zeros_like(a)) for n, a in expected.items()}
    for step in (1, 2):
        learner.train(1)
        for name, gradient in gradients(policy).items():
            m, v = moments[name]
            m, v = beta1 * m + (1 - beta1) * gradient, beta2 * v + (1 - beta2) * gradient.astype(np.float64) ** 2
            moments[name] = m, v
            update = (m / (1 - beta1**step)) / (np.sqrt(v / (1 - beta2**step)) + eps)
            expected[name] = expected[name] * (1 - lr * decay) - lr * update
    for name, array in policy.weights().tensors.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=2e-6, err_msg=name)


def test_the_gradient_norm_is_reported_whole_and_applied_clipped(begin: Callable[..., tuple[Policy, Learner]]) -> None:
    free_policy, free = begin(max_grad_norm=1e9)
    clipped_policy, clipped = begin(max_grad_norm=0.01)
    (free_row,), (clipped_row,) = free.train(1), clipped.train(1)
    assert free_row.values["grad_norm"] == clipped_row.values["grad_norm"] > 0.01
    whole, cut = gradients(free_policy), gradients(clipped_policy)
    assert norm(cut) == pytest.approx(0.01, rel=1e-4)
    for name, gradient in whole.items():
        np.testing.assert_allclose(cut[name], gradient * 0.01 / free_row.values["grad_norm"], rtol=1e-3, atol=1e-9)


def test_the_warm_up_leaves_the_references_out_and_ends(begin: Callable[..., tuple[Policy, Learner]]) -> None:
    _, learner = begin(warm_up_steps=3)
    rows = learner.train(5)
    assert [row.values["log_ratio/abs_mean"] > 0 for row in rows] == [False, False, False, True, True]


def test_training_raises_the_odds_of_the_better_trajectory(begin: Callable[..., tuple[Policy, Learner]]) -> None:
    _, learner = begin(lr=3e-3, batch_groups=5, tuple_choice="best_worst", clip=0.1)
    rows = learner.train(15)
    assert rows[0].values["loss"] == pytest.approx(np.log(2), rel=1e-6)
    assert np.mean([row.values["loss"] for row in rows[-3:]]) < rows[0].values["loss"] - 0.02


@pytest.mark.parametrize("tuple_size", [2, 3])
def test_equal_rewards_move_nothing_unless_ties_are_broken_at_random(
    make_policy: Callable[..., Policy], make_learner: Callable[..., Learner], groups: Groups, tuple_size: int
) -> None:
    equal = [replace(group, rewards=np.zeros_like(group.rewards)) for group in groups]
    norms, moved = {}, {}
    for ties in ("marginal", "random"):
        learner = make_learner(make_policy(), ties=ties, tuple_size=tuple_size)
        learner.begin_stage(0, equal)
        before = learner.weights().checksum
        rows = learner.train(3)
        assert [row.values["reward/ties"] for row in rows] == [1.0] * 3
        norms[ties] = [row.values["grad_norm"] for row in rows]
        moved[ties] = learner.weights().checksum != before
    assert norms["marginal"] == [0.0] * 3
    assert min(norms["random"]) > 0.01
    assert moved == {"marginal": False, "random": True}


def test_each_group_of_a_batch_is_fetched_once(
    make_policy: Callable[..., Policy], make_learner: Callable[..., Learner], groups: Groups
) -> None:
    fetched: list[list[int]] = []

    def fetch(handles: Sequence[TrajectoryGroup]) -> Sequence[TrajectoryGroup]:
        fetched.append([g.index for g in handles])
        return handles

    learner = make_learner(make_policy(), fetch=fetch, batch_groups=40)
    learner.begin_stage(0, groups)
    assert fetched == []  # nothing is pulled before a batch draws it
    learner.train(1)
    assert fetched[0] == [0, 1, 2, 3, 4]  # each once, for a batch of 40 draws; what follows is for the next step


def test_groups_of_another_stage_are_refused(begin: Callable[..., tuple[Policy, Learner]], groups: Groups) -> None:
    _, learner = begin()
    learner.begin_stage(1, groups)
    with pytest.raises(ValueError, match="not of stage 1"):
        learner.train(1)


def without_log_probs(groups: Groups, stage: int) -> Groups:
    """The groups with a NaN for every stored log-prob: the loss against π_old is NaN."""
    return [replace(g, stage=stage, log_probs=np.full_like(g.log_probs, np.nan)) for g in groups]


def test_a_step_without_a_finite_loss_is_skipped_and_counted(
    begin: Callable[..., tuple[Policy, Learner]], groups: Groups
) -> None:
    # torch's clamp passes no gradient for NaN, so a check of the gradient's norm alone would see a finite 0
    _, learner = begin(to_init=False, to_old=True, weight_decay=0.1)
    learner.train(1)
    before = learner.state_dict()
    learner.begin_stage(1, without_log_probs(groups, stage=1))
    (row,) = learner.train(1)
    after = learner.state_dict()
    assert (row.step, row.values) == (2, {"skipped": 1.0})
    assert (after["step"], after["skipped"]) == (2, 1)
    assert after["weights"].checksum == before["weights"].checksum
    assert float(after["optimizer"]["state"][0]["step"]) == 1.0  # AdamW took one step, not two


def test_several_such_steps_in_a_row_end_the_run_with_what_they_saw(
    begin: Callable[..., tuple[Policy, Learner]], groups: Groups
) -> None:
    _, learner = begin(to_init=False, to_old=True)
    learner.begin_stage(1, without_log_probs(groups, stage=1))
    learner.train(MAX_SKIPPED - 1)
    with pytest.raises(NonFiniteStepError, match=rf"{MAX_SKIPPED} gradient steps in a row .* of stage 1: groups \["):
        learner.train(1)


def test_a_good_step_ends_the_count_also_across_a_checkpoint(
    begin: Callable[..., tuple[Policy, Learner]], groups: Groups, tmp_path: Path
) -> None:
    _, learner = begin(to_init=False, to_old=True)
    learner.begin_stage(1, without_log_probs(groups, stage=1))
    learner.train(MAX_SKIPPED - 1)
    save_checkpoint(tmp_path / "checkpoint", Checkpoint(learner.state_dict(), Position(1, 2), learner.weights(), 0))

    _, restored = begin(to_init=False, to_old=True)
    restored.load_state_dict(load_checkpoint(tmp_path / "checkpoint").learner)
    assert restored.state_dict()["skipped"] == MAX_SKIPPED - 1
    assert restored.train(1)[0].values["skipped"] == 0.0
    assert restored.state_dict()["skipped"] == 0


def test_the_run_seed_decides_the_batches(
    begin: Callable[..., tuple[Policy, Learner]],
) -> None:
    rows = [begin(run_seed=seed)[1].train(1)[0].values["reward/gap"] for seed in (1, 1, 2)]
    assert rows[0] == rows[1] != rows[2]


class Copies(TorchDispatchMode):
    """How many tensors are copied from one device to another."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = [value.device for value in args if isinstance(value, torch.Tensor)]
        self.count += isinstance(result, torch.Tensor) and bool(given) and given != [result.device] * len(given)
        return result


class Reached(Exception):
    pass


@pytest.mark.parametrize(
    ("cached", "clip", "ties", "copies"),
    [
        (False, 0.05, "random", 0),
        (False, 0.05, "marginal", 2 * 3 * 2),  # in each of two parts, tables of sets of one and of two trajectories
        (False, AutoClip(4, 0.1, 0.0), "random", 1),
        (True, 0.05, "random", 2 * 2),  # in each of two parts: what is known, and which is not
    ],
)
def test_a_step_waits_for_its_device_at_its_end_alone(
    begin: Callable[..., tuple[Policy, Learner]],
    monkeypatch: pytest.MonkeyPatch,
    cached: bool,
    clip: Any,
    ties: str,
    copies: int,
) -> None:
    """A device without content stands in: what is read from it, or depends on a value there, is an error."""
    policy, made = begin(clip=clip, ties=ties, tuple_size=3, micro_batch=2, to_old=True)
    learner: Any = made
    drawn = learner._batches.take(0)
    device, network = torch.device("meta"), policy.network.to("meta")
    policy.device, policy.schedule, policy._lora = device, policy.schedule.to(device), LoraBeside(network)
    policy._parameters, policy._null = policy._lora.parameters, each(policy._null, lambda tensor: tensor.to(device))
    parts = [(rows, part.to(device)) for rows, part in drawn.parts]
    learner._objective._references = ReferenceCache(policy, groups=5, keep=3, enabled=cached)
    queued = []

    def queue(tensor: torch.Tensor, where: torch.device) -> torch.Tensor:
        queued.append(tensor)
        return to_device(tensor, where)

    def read(tensors: Any) -> None:
        assert {tensor.device for tensor in tensors.values()} == {device}
        raise Reached

    for module in (references, clips, losses):
        monkeypatch.setattr(module, "to_device", queue)
    monkeypatch.setattr(sgd_learner, "_read", read)
    monkeypatch.setattr(losses, "_sets_by_size", losses._sets_by_size.__wrapped__)  # keeps none of them
    with Copies() as seen, pytest.raises(Reached):
        learner._accumulate_gradient(replace(drawn, parts=parts))
    assert (seen.count, len(queued)) == (copies, copies)
    assert all(parameter.grad is not None for parameter in policy.parameters())


def test_the_state_of_a_gpu_travels_as_cpu_tensors(begin: Callable[..., tuple[Policy, Learner]]) -> None:
    """A GPU's moments are stood in for by tensors that know their device and hold nothing; the reader refuses them."""
    _, learner = begin()
    learner.train(1)
    with FakeTensorMode():
        for state in learner._optimizer.state.values():
            state.update({name: torch.zeros(value.shape, device="cuda") for name, value in state.items()})
    travelling, seen = learner.state_dict(), []

    def receive(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            assert value.device.type == "cpu", "there is no GPU here"
            seen.append(value)

    tree_map(receive, {**travelling, "weights": dict(travelling["weights"].tensors)})
    count = len(learner.policy.parameters())
    assert len(seen) > 3 * count  # step and two moments each, and what the references know
    assert travelling["optimizer"]["param_groups"][0]["params"] == list(range(count))
