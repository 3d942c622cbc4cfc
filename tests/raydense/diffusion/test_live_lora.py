"""A LoRA merged into a network draws as one beside it, costs nothing, and comes out again without a trace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from raydense.core.interfaces import InertWeights
from raydense.core.types import PolicyWeights
from raydense.diffusion.live_lora import LoraBeside
from raydense.diffusion.policy import Policy
from raydense.diffusion.proof import prove_effect
from raydense.diffusion.widening import widened
from raydense.families.conditioning import Conditioning, each
from raydense.planning.footprint import _PeakMemory

Make = Callable[..., Policy]
CONVOLUTIONS = ("to_q", "to_out.0", "conv1", "conv_shortcut", "proj_in")
SMALL = 1e-5  # of a LoRA, far below a last place of 16-bit weights
FLOAT16 = pytest.param(torch.float16, marks=pytest.mark.slow)


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Conditioning]:
    draws = torch.Generator().manual_seed(0)
    return (
        torch.randn((3, 4, 8, 8), generator=draws),
        torch.tensor([0, 2, 3]),
        {"prompt_embeds": torch.randn((3, 12, 16), generator=draws)},
    )


@pytest.fixture
def trained(make_policy: Make, perturbed: Callable[..., PolicyWeights]) -> Callable[..., PolicyWeights]:
    def make(targets: tuple[str, ...] = CONVOLUTIONS, scale: float = 0.3) -> PolicyWeights:
        return perturbed(make_policy(targets=targets, rank=2, alpha=6), scale=scale)

    return make


def load(make_policy: Make, weights: PolicyWeights, **options: Any) -> Policy:
    policy = make_policy(targets=CONVOLUTIONS, rank=2, alpha=6, **options)
    policy.bind(weights)
    return policy


def adapted(policy: Policy) -> int:
    """How many layers the network has whose LoRA is beside them."""
    return sum(isinstance(module, BaseTunerLayer) for module in policy.network.modules())


@torch.no_grad()
def test_merged_it_predicts_what_it_predicts_beside_the_weights(
    make_policy: Make, trained: Callable[..., PolicyWeights], inputs: Any
) -> None:
    weights = trained()
    beside, merged = load(make_policy, weights), load(make_policy, weights, merged=True)
    expected = beside.predict(*inputs)
    torch.testing.assert_close(merged.predict(*inputs), expected, rtol=1e-4, atol=1e-4)
    with beside.reference():
        base = beside.predict(*inputs)
    assert float((base - expected).abs().max()) > 0.1
    with merged.reference():
        assert torch.equal(merged.predict(*inputs), base)  # the weights that were loaded, bit for bit
    torch.testing.assert_close(merged.predict(*inputs), expected, rtol=1e-4, atol=1e-4)
    assert merged.weights().checksum == weights.checksum


@torch.no_grad()
def test_other_weights_leave_no_trace_of_those_before(
    make_policy: Make, trained: Callable[..., PolicyWeights], inputs: Any
) -> None:
    first, second = trained(), trained(scale=0.1)
    policy = load(make_policy, second, merged=True, dtype=torch.bfloat16)
    expected = policy.predict(*inputs)
    policy.bind(first)
    assert not torch.equal(policy.predict(*inputs), expected)
    policy.bind(second)
    assert torch.equal(policy.predict(*inputs), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, FLOAT16], ids=str)
@pytest.mark.parametrize("merged", [False, True])
@torch.no_grad()
def test_in_float32_any_policy_predicts_the_same(
    make_policy: Make, trained: Callable[..., PolicyWeights], inputs: Any, dtype: torch.dtype, merged: bool
) -> None:
    weights = trained()
    policy = load(make_policy, weights, dtype=dtype, merged=merged)
    own = policy.predict(*inputs)
    exact = load(make_policy, weights)  # of weights that were rounded before
    rounded = {
        name: tensor.to(dtype).float() for name, tensor in exact.network.state_dict().items() if "lora" not in name
    }
    exact.network.load_state_dict(rounded, strict=False)
    with policy.in_float32():
        torch.testing.assert_close(policy.predict(*inputs), exact.predict(*inputs), rtol=1e-5, atol=1e-5)
        with policy.reference(), exact.reference():
            torch.testing.assert_close(policy.predict(*inputs), exact.predict(*inputs), rtol=1e-5, atol=1e-5)
    assert torch.equal(policy.predict(*inputs), own)


@torch.no_grad()
def test_float32_takes_the_memory_of_a_layer_and_leaves_the_weights_where_they_were() -> None:
    network = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(20))).bfloat16()
    before = [(p, p.data_ptr(), p.clone()) for p in network.parameters()]
    with widened(network, {}), _PeakMemory(network) as memory:
        assert network(torch.ones(1, 64)).dtype == torch.float32
    assert 64 * 65 * 4 < memory.peak < 2.5 * 64 * 65 * 4
    with pytest.raises(RuntimeError), widened(network, {}):
        network(torch.ones(1, 63))
    assert all(p.data_ptr() == place and torch.equal(p, kept) for p, place, kept in before)
    assert all(p.dtype == torch.bfloat16 for p in network.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, FLOAT16], ids=str)
@torch.no_grad()
def test_what_16_bits_would_round_away_stays_beside_the_weights(
    make_policy: Make, trained: Callable[..., PolicyWeights], inputs: Any, dtype: torch.dtype
) -> None:
    policy = load(make_policy, trained(), merged=True, dtype=dtype)
    assert adapted(policy) == 0
    merged = policy.predict(*inputs)
    small = trained(scale=SMALL)
    policy.bind(small)
    assert adapted(policy) > 10
    tuned = policy.predict(*inputs)
    with policy.reference():
        assert float((tuned - policy.predict(*inputs)).abs().max()) > 0
    exact = load(make_policy, small, dtype=torch.float32)
    rounding = (policy.predict(*inputs) - exact.predict(*inputs)).norm() / tuned.norm()
    assert float(rounding) < 0.05
    policy.bind(trained())
    assert adapted(policy) == 0
    assert torch.equal(policy.predict(*inputs), merged)


def test_in_float32_everything_is_merged(make_policy: Make, trained: Callable[..., PolicyWeights]) -> None:
    assert adapted(load(make_policy, trained(scale=SMALL), merged=True)) == 0


def places(policy: Policy) -> dict[str, int]:
    """Where in memory lies what a call reads, beside its inputs."""
    read = {**dict(policy.network.named_parameters()), **dict(policy.network.named_buffers()), **policy._null}
    return {name: tensor.data_ptr() for name, tensor in read.items()}


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_what_a_recorded_call_reads_keeps_its_place_in_memory(
    make_policy: Make, trained: Callable[..., PolicyWeights], inputs: Any, dtype: torch.dtype, merged: bool
) -> None:
    policy = load(make_policy, trained(), merged=merged, dtype=dtype)
    before, null = places(policy), policy._null
    assert "prompt_embeds" in before

    def stayed() -> bool:
        return places(policy) == before and policy._null is null  # a place that was freed may be given out again

    policy.bind(trained(scale=0.2))
    assert stayed()
    x, _, embeds = inputs
    prove_effect(policy, x[:1], each(embeds, lambda tensor: tensor[:1]))
    assert stayed()
    with policy.reference():
        policy.predict(*inputs)
    assert stayed()
    with pytest.raises(KeyError), policy.in_float32():
        raise KeyError
    assert stayed()


class _Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[str(function)] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_a_merged_call_launches_what_plain_diffusers_does(
    make_policy: Make, trained: Callable[..., PolicyWeights], inputs: Any, pipeline_dir: Any, dtype: torch.dtype
) -> None:
    from diffusers import UNet2DConditionModel

    policy = load(make_policy, trained(scale=1.0), merged=True, dtype=dtype)
    plain = UNet2DConditionModel.from_pretrained(pipeline_dir, subfolder="unet", torch_dtype=dtype).eval()
    x, t, embeds = inputs
    x, given = x.to(dtype), each(embeds, lambda tensor: tensor.to(dtype))
    embeds = given["prompt_embeds"]
    null, timesteps = torch.zeros_like(embeds), policy.schedule.timesteps[t]
    with _Calls() as ours:
        policy.predict(x, t, given)
    with _Calls() as theirs:  # the body of diffusers' loop
        output = plain(torch.cat([x, x]), torch.cat([timesteps] * 2), torch.cat([null, embeds])).sample
        unconditional, conditional = output.chunk(2)
        unconditional + 3.0 * (conditional - unconditional)
    views = {"aten.expand.default", "aten.unsqueeze.default", "aten.alias.default", "aten.detach.default"}
    more = {name: count for name, count in (ours.names - theirs.names).items() if name not in views}
    float32 = dtype != torch.float32  # the prediction is guided and handed on in float32
    assert more == {"aten.index.Tensor": 1} | ({"aten._to_copy.default": 1} if float32 else {})


def test_16_bit_copies_hand_their_gradients_on_and_add_them_up_in_float32() -> None:
    network = torch.nn.Linear(4, 4, bias=False).bfloat16()
    lora = LoraBeside(network)
    (parameter,) = lora.parameters.values()
    assert parameter.dtype == torch.float32
    for _ in range(300):  # in bfloat16, 256 + 1 is 256
        network(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
    assert parameter.grad is not None
    assert torch.equal(parameter.grad, torch.full((4, 4), 300.0))
    assert network.weight.grad is None
    with torch.no_grad():
        parameter.add_(2.0)
    lora.update()
    assert torch.equal(network.weight, parameter.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [SMALL * 100, 0.3])
def test_the_proof_finds_a_wrong_merge_and_weights_without_effect(
    make_policy: Make, trained: Callable[..., PolicyWeights], inputs: Any, dtype: torch.dtype, scale: float
) -> None:
    weights = trained(scale=scale)
    policy = load(make_policy, weights, merged=True, dtype=dtype)
    x, _, embeds = inputs
    prove_effect(policy, x[:1], each(embeds, lambda tensor: tensor[:1]))
    if adapted(policy):
        return  # too small for 16 bits: there is no merge to be wrong
    some = next(module for name, module in policy.network.named_modules() if name.endswith("to_q"))
    some.weight.data *= -3
    said = r"version 1: merged into the network they .* moves the prediction by [0-9]+%.*sampler.exact"
    with pytest.raises(RuntimeError, match=said):
        prove_effect(policy, x[:1], each(embeds, lambda tensor: tensor[:1]))
    policy.bind(load(make_policy, trained(scale=0.0), dtype=dtype).weights())
    with pytest.raises(InertWeights):
        prove_effect(policy, x[:1], each(embeds, lambda tensor: tensor[:1]))
