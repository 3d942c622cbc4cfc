"""Work units become groups: which trajectories are kept, and that a unit's result is its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from actors.sampler import EMBEDDINGS, DiffusionSampler
from raydense.core.interfaces import InertWeights, NonFiniteError, ScoreError, SharedStateChanged
from raydense.core.ranking import rank_positions
from raydense.core.seeding import generator
from raydense.core.types import PolicyWeights, RenderUnit, TrajectoryGroup, WorkUnit, averaged_version
from raydense.diffusion.policy import Policy


class Brightness:
    """The mean of an image's bytes: a judge without a model."""

    def __init__(self, name: str = "brightness", broken_prompt: str | None = None) -> None:
        self.name, self._broken_prompt = name, broken_prompt

    def score(self, images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        assert images.dtype == np.uint8
        assert len(images) == len(prompts)
        scores = images.reshape(len(images), -1).mean(axis=1).astype(np.float32)
        scores[[prompt == self._broken_prompt for prompt in prompts]] = np.nan
        return scores


FINAL_NORM = "final_layer_norm.bias"  # of a text encoder
UNIT = WorkUnit(stage=1, index=4, group_indices=(7, 8), prompts=("a cat", "a dog"), weights_version=0)


@pytest.fixture(scope="module")
def policy(make_policy: Callable[..., Policy]) -> Policy:
    return make_policy(with_decoder=True)


@pytest.fixture(scope="module")
def initial(policy: Policy) -> PolicyWeights:
    return policy.weights()


@pytest.fixture
def make_sampler(policy: Policy) -> Callable[..., DiffusionSampler]:
    def make(**changes: Any) -> DiffusionSampler:
        options: dict[str, Any] = {
            "run_seed": 3,
            "trajectories": 6,
            "keep": 3,
            "shared_noise": False,
            "storage_dtype": torch.float16,
            "threads": 1,
        }
        scorer, monitors = changes.pop("scorer", Brightness()), changes.pop("monitors", ())
        return DiffusionSampler(changes.pop("policy", policy), scorer, monitors, **{**options, **changes})

    return make


def assert_same(first: TrajectoryGroup, second: TrajectoryGroup) -> None:
    assert first.conditioning.keys() == second.conditioning.keys()
    for name, array in first.conditioning.items():
        assert np.array_equal(array, second.conditioning[name]), name
    for name in ("latents", "log_probs", "rewards"):
        assert np.array_equal(getattr(first, name), getattr(second, name)), name


def test_k_of_r_are_kept_evenly_by_rank(make_sampler: Callable[..., DiffusionSampler], initial: PolicyWeights) -> None:
    report, groups = make_sampler(keep=3).sample(UNIT, initial)
    _, everything = make_sampler(keep=6).sample(UNIT, initial)
    for meta, group, whole in zip(report.groups, groups, everything, strict=True):
        assert len(set(meta.rewards)) == 6  # else the order below would be a tie's
        positions = rank_positions(6, 3)
        assert group.rewards.tolist() == [sorted(meta.rewards)[p] for p in positions]
        assert np.array_equal(group.latents, whole.latents[positions])
        assert np.array_equal(group.log_probs, whole.log_probs[positions])


def test_a_group_says_what_it_is(make_sampler: Callable[..., DiffusionSampler], initial: PolicyWeights) -> None:
    report, groups = make_sampler(monitors=(Brightness("watched"),), name="sampler-1").sample(UNIT, initial)
    assert (report.unit, report.sampler) == (UNIT, "sampler-1")
    assert min(report.seconds.values()) > 0
    for position, (meta, group) in enumerate(zip(report.groups, groups, strict=True)):
        for said in (meta, group):
            assert (said.stage, said.index, said.prompt) == (1, 7 + position, UNIT.prompts[position])
            assert (said.weights_version, said.weights_checksum) == (0, initial.checksum)
        assert meta.nbytes == group.nbytes
        assert meta.monitors == {"watched": meta.rewards}


def test_every_state_is_stored_once(make_sampler: Callable[..., DiffusionSampler], initial: PolicyWeights) -> None:
    _, (group, _) = make_sampler().sample(UNIT, initial)
    assert (group.latents.shape, group.latents.dtype) == ((3, 5, 4, 8, 8), np.float16)
    assert (group.log_probs.shape, group.log_probs.dtype) == ((3, 4), np.float32)
    assert (group.rewards.shape, group.rewards.dtype) == ((3,), np.float32)
    assert group.conditioning["prompt_embeds"].shape == (12, 16)  # once a group, not once a trajectory
    assert group.nbytes == 3 * 5 * 256 * 2 + 3 * 4 * 4 + 3 * 4 + 12 * 16 * 4
    # what travels must not drag the whole unit along
    assert all(a.base is None or a.base.nbytes == a.nbytes for a in (group.latents, group.log_probs, group.rewards))


def test_the_noise_is_a_function_of_seed_stage_group_and_trajectory(
    make_sampler: Callable[..., DiffusionSampler], initial: PolicyWeights
) -> None:
    _, groups = make_sampler(keep=6).sample(UNIT, initial)
    for group in groups:
        starts = [torch.randn((5, 4, 8, 8), generator=generator(3, "rollout", 1, group.index, k))[0] for k in range(6)]
        expected = {start.half().numpy().tobytes() for start in starts}
        assert {state.tobytes() for state in group.latents[:, 0]} == expected


def test_shared_noise_gives_a_group_one_start_and_different_ends(
    make_sampler: Callable[..., DiffusionSampler], initial: PolicyWeights
) -> None:
    _, (first, second) = make_sampler(shared_noise=True, keep=6).sample(UNIT, initial)
    assert all(np.array_equal(state, first.latents[0, 0]) for state in first.latents[:, 0])
    assert len({state.tobytes() for state in first.latents[:, 1]}) == 6
    assert not np.array_equal(first.latents[0, 0], second.latents[0, 0])


def test_a_units_groups_depend_on_no_other_unit_and_no_order(
    make_sampler: Callable[..., DiffusionSampler], initial: PolicyWeights
) -> None:
    other = WorkUnit(stage=1, index=5, group_indices=(9,), prompts=("a dog",), weights_version=0)
    _, alone = make_sampler().sample(UNIT, initial)
    busy = make_sampler()
    busy.sample(other, initial)
    busy.render(RenderUnit(("a hen",), (0,), 0), initial)
    _, later = busy.sample(UNIT, initial)
    _, retried = busy.sample(UNIT, initial)
    for first, second, third in zip(alone, later, retried, strict=True):
        assert_same(first, second)
        assert_same(first, third)


def test_groups_of_another_seed_stage_or_index_differ(
    make_sampler: Callable[..., DiffusionSampler], initial: PolicyWeights
) -> None:
    one = replace(UNIT, group_indices=(7,), prompts=("a cat",))
    starts = [
        make_sampler(run_seed=seed, keep=6).sample(replace(one, stage=stage, group_indices=(group,)), initial)[1][0]
        for seed, stage, group in ((3, 1, 7), (4, 1, 7), (3, 2, 7), (3, 1, 8))
    ]
    assert len({state.tobytes() for group in starts for state in group.latents[:, 0]}) == 4 * 6


def test_the_weights_that_come_with_a_unit_are_bound(
    make_sampler: Callable[..., DiffusionSampler], policy: Policy, initial: PolicyWeights, perturbed: Callable[..., Any]
) -> None:
    policy.bind(initial)
    tuned = perturbed(policy, version=2)
    sampler = make_sampler()
    _, before = sampler.sample(UNIT, initial)
    _, after = sampler.sample(replace(UNIT, weights_version=2), tuned)
    _, again = sampler.sample(UNIT, initial)
    assert after[0].weights_checksum == tuned.checksum
    assert not np.array_equal(after[0].log_probs, before[0].log_probs)
    assert_same(before[0], again[0])


def test_weights_that_could_not_be_bound_are_not_taken_for_those_before(
    make_sampler: Callable[..., DiffusionSampler], policy: Policy, initial: PolicyWeights, perturbed: Callable[..., Any]
) -> None:
    policy.bind(initial)
    sampler = make_sampler()
    _, before = sampler.sample(UNIT, initial)
    half = replace(perturbed(policy, version=2), checksum="another")  # found out when all of it is live
    with pytest.raises(RuntimeError, match="LoRA version 2: live checksum"):
        sampler.sample(replace(UNIT, weights_version=2), half)
    assert policy.version not in (0, 2)
    _, again = sampler.sample(UNIT, initial)
    assert_same(before[0], again[0])
    assert policy.version == 0


@pytest.mark.parametrize("version", [2, averaged_version(2)])
def test_weights_without_effect_are_not_taken_for_those_before(
    make_sampler: Callable[..., DiffusionSampler], policy: Policy, initial: PolicyWeights, version: int
) -> None:
    tiny = {name: np.full_like(a, 1e-30) if "lora_B" in name else a for name, a in initial.tensors.items()}
    inert = PolicyWeights.of(version, tiny)
    sampler = make_sampler()
    _, before = sampler.sample(UNIT, initial)
    for _ in range(2):  # and are not let through at the second try
        with pytest.raises(InertWeights):
            sampler.sample(replace(UNIT, weights_version=version), inert)
    _, again = sampler.sample(UNIT, initial)
    assert_same(before[0], again[0])
    assert policy.weights().checksum == initial.checksum


def test_another_weights_version_than_the_units_is_an_error(
    make_sampler: Callable[..., DiffusionSampler], initial: PolicyWeights
) -> None:
    with pytest.raises(ValueError, match="names weights version 6, but version 0 came"):
        make_sampler().sample(replace(UNIT, weights_version=6), initial)
    with pytest.raises(ValueError, match="names weights version 6, but version 0 came"):
        make_sampler().render(RenderUnit(("a cat",), (0,), 6), initial)


def test_a_score_that_is_not_finite_is_an_error_and_no_zero(
    make_sampler: Callable[..., DiffusionSampler], initial: PolicyWeights
) -> None:
    broken = Brightness("broken", broken_prompt="a dog")
    with pytest.raises(ScoreError, match="scorer broken gave nan for the prompt 'a dog'"):
        make_sampler(scorer=broken).sample(UNIT, initial)


def test_a_monitor_that_fails_costs_its_own_scores_alone(
    make_sampler: Callable[..., DiffusionSampler], initial: PolicyWeights
) -> None:
    _, expected = make_sampler().sample(UNIT, initial)
    monitors = (Brightness("broken", broken_prompt="a dog"), Brightness("watched"))
    report, groups = make_sampler(monitors=monitors).sample(UNIT, initial)
    assert report.failures == {"broken": "scorer broken gave nan for the prompt 'a dog'"}
    for meta, group, same in zip(report.groups, groups, expected, strict=True):
        assert_same(group, same)
        assert np.isnan(meta.monitors["broken"]).all()
        assert meta.monitors["watched"] == meta.rewards
    rendered = make_sampler(monitors=monitors).render(RenderUnit(("a dog",), (0,), 0), initial)
    assert rendered.failures == report.failures
    assert np.isnan(rendered.scores["broken"]).all()


def test_pictures_that_were_made_while_a_judge_changed_the_process_are_thrown_away(
    make_sampler: Callable[..., DiffusionSampler],
    policy: Policy,
    initial: PolicyWeights,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judging, denoised = threading.Event(), threading.Event()

    class Changing(Brightness):
        def score(self, images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
            if not judging.is_set():
                judging.set()
                assert denoised.wait(60)  # the other unit's pictures, in the meantime
                raise SharedStateChanged("scorer changing changed the working directory")
            return super().score(images, prompts)

    decode = policy.decode

    def told(latents: torch.Tensor) -> np.ndarray:
        images = decode(latents)
        if judging.is_set():
            denoised.set()
        return images

    monkeypatch.setattr(policy, "decode", told)
    sampler = make_sampler(scorer=Brightness(), monitors=(Changing("changing"),))
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(sampler.sample, UNIT, initial)
        assert judging.wait(60)
        second = pool.submit(sampler.render, RenderUnit(("a cat",), (0,), 0), initial)
        with pytest.raises(SharedStateChanged, match=r"scorer changing changed the working directory$"):
            first.result()
        with pytest.raises(SharedStateChanged, match="the working directory; these pictures were made meanwhile"):
            second.result()
    _, expected = make_sampler().sample(UNIT, initial)
    _, groups = sampler.sample(UNIT, initial)  # what is made after it is as good as ever
    for group, same in zip(groups, expected, strict=True):
        assert_same(group, same)


def test_no_bit_of_a_trajectory_depends_on_torchs_default_dtype(
    make_sampler: Callable[..., DiffusionSampler], initial: PolicyWeights
) -> None:
    """Which a judge in the other thread may set, and put back before anybody sees it."""
    _, expected = make_sampler().sample(UNIT, initial)
    torch.set_default_dtype(torch.float64)
    try:
        _, groups = make_sampler().sample(UNIT, initial)
    finally:
        torch.set_default_dtype(torch.float32)
    for group, same in zip(groups, expected, strict=True):
        assert_same(group, same)


def test_a_lora_that_learned_nothing_yet_is_taken_for_what_it_is(
    make_sampler: Callable[..., DiffusionSampler], initial: PolicyWeights
) -> None:
    untrained = PolicyWeights.of(3, initial.tensors)  # as after a stage of ties alone
    report, _ = make_sampler().sample(replace(UNIT, weights_version=3), untrained)
    assert report.groups[0].weights_version == 3


@pytest.mark.parametrize("work", ["sample", "render"])
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda p: p.network.conv_out.bias.fill_(torch.nan), r"latents \(U-Net, step t = 0 of T = 4\); a LoRA may"),
        (lambda p: p.vae.decoder.conv_out.bias.fill_(torch.inf), r"non-finite pixels \(image decoder\); try sampler"),
        (
            lambda p: p.texts["text_encoder"].network.get_parameter(FINAL_NORM).fill_(torch.nan),
            "(text encoder)",
        ),
    ],
)
def test_what_is_no_number_ends_the_unit_and_is_no_black_picture(
    make_policy: Callable[..., Policy], initial: PolicyWeights, spoil: Callable[[Policy], Any], said: str, work: str
) -> None:
    policy = make_policy(with_decoder=True)
    with torch.no_grad():
        spoil(policy)
    options = {"run_seed": 3, "trajectories": 6, "keep": 3, "shared_noise": False}
    sampler = DiffusionSampler(policy, Brightness(), (), **options, storage_dtype=torch.float16, threads=1)  # type: ignore[arg-type]
    with pytest.raises(NonFiniteError, match=said):
        sampler.sample(UNIT, initial) if work == "sample" else sampler.render(RenderUnit(("a cat",), (0,), 0), initial)


def test_the_step_at_which_it_began_is_named(
    make_sampler: Callable[..., DiffusionSampler],
    policy: Policy,
    initial: PolicyWeights,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    predict = policy.predict

    def overflow_at_step_2(x: torch.Tensor, t: torch.Tensor, *others: Any) -> torch.Tensor:
        return predict(x, t, *others) * (1e6 if int(t[0]) == 2 else 1)  # beyond the float16 of the states

    monkeypatch.setattr(policy, "predict", overflow_at_step_2)
    with pytest.raises(NonFiniteError, match=r"non-finite latents \(U-Net, step t = 2 of T = 4\)"):
        make_sampler().sample(UNIT, initial)
    make_sampler(storage_dtype=torch.float32).sample(UNIT, initial)


def test_the_same_seed_draws_the_same_picture_and_its_score(
    make_sampler: Callable[..., DiffusionSampler], initial: PolicyWeights
) -> None:
    sampler = make_sampler(monitors=(Brightness("watched"),))
    unit = RenderUnit(("a cat", "a cat", "a dog"), (0, 1, 0), 0)
    first, again = sampler.render(unit, initial), sampler.render(unit, initial)
    assert first.images.shape == (3, 16, 16, 3)
    assert np.array_equal(first.images, again.images)
    assert not np.array_equal(first.images[0], first.images[1])
    expected = first.images.reshape(3, -1).mean(axis=1).astype(np.float32)
    assert {name: scores.tolist() for name, scores in first.scores.items()} == {
        "brightness": expected.tolist(),
        "watched": expected.tolist(),
    }


def test_one_unit_is_scored_while_the_next_is_denoised_and_the_bits_are_those_of_one_after_the_other(
    make_sampler: Callable[..., DiffusionSampler],
    policy: Policy,
    initial: PolicyWeights,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    units = [replace(UNIT, index=i, group_indices=(2 * i, 2 * i + 1)) for i in range(3)]
    alone = [make_sampler().sample(unit, initial)[1] for unit in units]
    decoded, decode, scored, denoising = threading.Semaphore(0), policy.decode, [], []

    def watched_decode(latents: torch.Tensor) -> np.ndarray:
        denoising.append(1)
        assert len(denoising) == 1  # the device has one unit at a time
        images = decode(latents)
        denoising.clear()
        decoded.release()
        return images

    class Patient(Brightness):
        def score(self, images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
            scored.append(len(scored))
            if len(scored) < 3:  # a judge that answers once the next unit's pictures are there
                assert decoded.acquire(timeout=60)
                assert decoded.acquire(timeout=60)
                decoded.release()
            return super().score(images, prompts)

    monkeypatch.setattr(policy, "decode", watched_decode)
    sampler = make_sampler(scorer=Patient())
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda unit: sampler.sample(unit, initial)[1], units))
    assert scored == [0, 1, 2]
    for before, after in zip(alone, together, strict=True):
        for first, second in zip(before, after, strict=True):
            assert_same(first, second)


def test_threads_of_the_process_come_back(
    make_sampler: Callable[..., DiffusionSampler], initial: PolicyWeights
) -> None:
    before = torch.get_num_threads()
    make_sampler(threads=before + 1).sample(UNIT, initial)
    assert torch.get_num_threads() == before


def test_a_units_prompts_are_embedded_while_another_is_denoised(
    make_sampler: Callable[..., DiffusionSampler],
    policy: Policy,
    initial: PolicyWeights,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    embedded, denoising = threading.Event(), threading.Event()
    encode, decode = policy.encode, policy.decode

    def told(prompt: str) -> Any:
        if prompt == "a hen":
            embedded.set()
        return encode(prompt)

    def patient(latents: torch.Tensor) -> np.ndarray:
        denoising.set()
        assert embedded.wait(60)
        return decode(latents)

    monkeypatch.setattr(policy, "encode", told)
    monkeypatch.setattr(policy, "decode", patient)
    sampler = make_sampler()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(sampler.sample, UNIT, initial)
        assert denoising.wait(60)
        second = pool.submit(sampler.render, RenderUnit(("a hen",), (0,), 0), initial)
        assert (len(first.result()[1]), len(second.result().images)) == (2, 1)


@pytest.mark.parametrize("damaged", [1, 2])
def test_every_version_of_the_weights_is_proved(
    make_policy: Callable[..., Policy],
    make_sampler: Callable[..., DiffusionSampler],
    initial: PolicyWeights,
    perturbed: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    damaged: int,
) -> None:
    policy = make_policy(with_decoder=True, merged=True)
    sampler, versions = make_sampler(policy=policy), [initial]
    versions += [perturbed(policy, seed=version, version=version) for version in (1, 2)]
    bind = policy.bind

    def badly(weights: PolicyWeights) -> None:
        bind(weights)
        if weights.version == damaged:
            next(m for name, m in policy.network.named_modules() if name.endswith("to_q")).weight.data *= -3

    monkeypatch.setattr(policy, "bind", badly)
    for weights in versions[:damaged]:
        sampler.sample(replace(UNIT, weights_version=weights.version), weights)
    with pytest.raises(RuntimeError, match=f"weights version {damaged}: merged into the network they predict another"):
        sampler.sample(replace(UNIT, weights_version=damaged), versions[damaged])


def test_embeddings_on_the_device_are_few(
    make_sampler: Callable[..., DiffusionSampler], initial: PolicyWeights
) -> None:
    sampler = make_sampler()
    for index in range(0, 2 * EMBEDDINGS, 32):
        sampler.render(RenderUnit(tuple(f"prompt {i}" for i in range(index, index + 32)), (0,) * 32, 0), initial)
    assert sampler._embed.cache_info().currsize == EMBEDDINGS
