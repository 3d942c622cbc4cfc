"""The lean U-Net: the plain one's bits, forward and backward, with less kept between the two."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from diffusers.models.activations import GEGLU
from torch import Tensor, nn

from raydense.diffusion.lean import FrozenConv2d, LeanGEGLU, keep_less
from raydense.diffusion.policy import Policy
from raydense.families.conditioning import stacked


@pytest.fixture(
    params=[{"dtype": torch.float32}, {"dtype": torch.bfloat16}, {"channels_last": True}],
    ids=["float32", "bfloat16", "channels_last"],
)
def policies(make_policy: Callable[..., Policy], request: pytest.FixtureRequest) -> tuple[Policy, Policy]:
    """Two policies of one LoRA that is not zero, plain and lean."""
    plain = make_policy(**request.param)
    draws = torch.Generator().manual_seed(0)
    for parameter in plain.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=draws)
    plain.update()
    lean = make_policy(**request.param)
    lean.bind(plain.weights())
    keep_less(lean.network)
    return plain, lean


def log_probs(policy: Policy) -> Tensor:
    draws = torch.Generator().manual_seed(1)
    x_t, x_next = (torch.randn((2, 4, 8, 8), generator=draws) for _ in range(2))
    embeds = stacked([policy.encode(prompt) for prompt in ("a cat", "a dog")])
    return policy.log_prob(x_t, x_next, torch.tensor([0, 2]), embeds)


def kept_bytes(policy: Policy) -> int:
    """Of tensors that autograd holds after a forward pass, parameters aside."""
    parameters = {p.untyped_storage().data_ptr() for p in policy.network.parameters()}
    kept: dict[int, Tensor] = {}  # the tensors stay alive, so that no address comes twice

    def pack(tensor: Tensor) -> Tensor:
        if (address := tensor.untyped_storage().data_ptr()) not in parameters:
            kept[address] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        log_probs(policy)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_the_bits_are_the_plain_networks(policies: tuple[Policy, Policy]) -> None:
    plain, lean = policies
    values = [log_probs(policy) for policy in policies]
    assert torch.equal(values[1], values[0])
    for value in values:
        value.sum().backward()
    for theirs, ours in zip(plain.parameters(), lean.parameters(), strict=True):
        assert theirs.grad is not None and ours.grad is not None
        assert theirs.grad.any()
        assert torch.equal(ours.grad, theirs.grad)


def test_a_quarter_less_is_kept_for_the_backward_pass(policies: tuple[Policy, Policy]) -> None:
    plain, lean = policies
    assert kept_bytes(lean) < 0.8 * kept_bytes(plain)


@pytest.mark.parametrize(("stride", "padding", "groups", "bias"), [(1, 1, 1, True), (2, 1, 1, False), (1, 0, 2, True)])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_frozen_convolution_of_any_geometry(
    stride: int, padding: int, groups: int, bias: bool, autocast: bool
) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 6, 3, stride=stride, padding=padding, groups=groups, bias=bias).requires_grad_(False)
    lean = copy.deepcopy(plain)
    keep_less(lean)
    assert type(lean) is FrozenConv2d
    x = torch.randn(2, 4, 9, 9).requires_grad_()
    gradients = []
    for layer in (plain, lean):
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            output = layer(x)
        assert output.dtype == (torch.bfloat16 if autocast else torch.float32)
        gradients.append(torch.autograd.grad(output.float().square().sum(), x)[0])
    assert gradients[0].any()
    assert gradients[1].dtype == torch.float32
    assert torch.equal(gradients[1], gradients[0])


def test_a_gated_gelu_passes_a_numerical_check() -> None:
    torch.manual_seed(0)
    layer = GEGLU(3, 4).double()
    keep_less(layer)
    assert type(layer) is LeanGEGLU
    assert torch.autograd.gradcheck(layer, torch.randn(5, 3, dtype=torch.float64, requires_grad=True))


def test_what_is_trained_stays_as_it_is() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1, padding=1, padding_mode="reflect"))
    layers[1].requires_grad_(False)
    keep_less(layers)
    assert [type(layer) for layer in layers] == [nn.Conv2d, nn.Conv2d]
