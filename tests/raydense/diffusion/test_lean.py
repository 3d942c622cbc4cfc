"""The lean network: the plain one's bits and, but for rounding, its gradients, with less kept and done for them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from diffusers.models.activations import GEGLU
from peft import LoraConfig
from peft.tuners import lora
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from raydense.diffusion.lean import FrozenConv2d, LeanGEGLU, LeanLora, keep_less
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


def gradients(policy: Policy) -> Tensor:
    found = [parameter.grad for parameter in policy.parameters()]
    assert all(gradient is not None and gradient.any() for gradient in found)
    return torch.cat([gradient.flatten() for gradient in found if gradient is not None])


def test_the_bits_are_the_plain_networks(policies: tuple[Policy, Policy]) -> None:
    plain, lean = policies
    values = [log_probs(policy) for policy in policies]
    assert torch.equal(values[1], values[0])
    for value in values:
        value.sum().backward()
    theirs, ours = gradients(plain), gradients(lean)
    rounding = torch.finfo(plain.dtype).eps
    assert float((ours - theirs).norm()) <= 10 * rounding * float(theirs.norm())


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


class Adapted(nn.Module):
    """One linear layer as the only target of a LoRA."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer: nn.Module = nn.Linear(5, 4).requires_grad_(False)
        config = LoraConfig(r=2, init_lora_weights=False, **options)  # type: ignore[arg-type]
        self.layer = lora.Linear(self.layer, "default", config=config, r=2, lora_alpha=config.lora_alpha)


@pytest.mark.parametrize("alpha", [2, 3])  # B A x counts once, and one and a half times
@pytest.mark.parametrize("learns_x", [False, True])
def test_an_adapted_layer_passes_a_numerical_check(alpha: int, learns_x: bool) -> None:
    plain = Adapted(lora_alpha=alpha).double()
    lean = copy.deepcopy(plain)
    keep_less(lean)
    assert type(lean.layer) is LeanLora
    x = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=learns_x)
    assert torch.equal(lean.layer(x), plain.layer(x))
    down, up = (getattr(lean.layer, f"lora_{half}").default.weight for half in "AB")
    trained = (x, down, up) if learns_x else (down, up)
    # its tensors are perturbed in place, so that the layer sees what the check varies
    assert torch.autograd.gradcheck(lambda *_: lean.layer(x), trained)


@pytest.mark.parametrize(("alpha", "left"), [(2, 1), (3, 2)])
def test_of_four_passes_over_a_layers_activations_one_or_two_are_left(alpha: int, left: int) -> None:
    plain = Adapted(lora_alpha=alpha)
    lean = copy.deepcopy(plain)
    keep_less(lean)
    counts = []
    for adapted in (plain, lean):
        with Passes(smallest=40) as passes:
            adapted.layer(torch.randn(10, 5, requires_grad=True)).backward(torch.ones(10, 4))
        counts.append(passes.count)
    assert counts == [4, left]


class Passes(TorchDispatchMode):
    """Counts elementwise additions and products of tensors with at least so many elements."""

    def __init__(self, smallest: int) -> None:
        super().__init__()
        self.count, self._smallest = 0, smallest

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        elementwise = (torch.ops.aten.add, torch.ops.aten.add_, torch.ops.aten.mul, torch.ops.aten.mul_)
        self.count += function.overloadpacket in elementwise and args[0].numel() >= self._smallest
        return function(*args, **(kwargs or {}))


def test_a_lora_that_is_off_computes_what_is_below_it() -> None:
    adapted = Adapted()
    keep_less(adapted)
    adapted.layer.enable_adapters(False)
    x = torch.randn(2, 5)
    assert torch.equal(adapted.layer(x), adapted.layer.get_base_layer()(x))


def merged(layer: lora.Linear) -> Tensor:
    layer.merge()
    return layer(torch.ones(2, 5))


def with_another_adapter(layer: lora.Linear) -> Tensor:
    layer.update_layer("other", 2, 2, LoraConfig(r=2))
    return layer(torch.ones(2, 5))


def without_an_adapter(layer: lora.Linear) -> Tensor:
    layer.set_adapter([])
    for half in (layer.lora_A, layer.lora_B):
        half["default"].requires_grad_(True)
    return layer(torch.ones(2, 5))


def under_autocast(layer: lora.Linear) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return layer(torch.ones(2, 5))


CALLS = [
    merged, with_another_adapter, without_an_adapter, under_autocast,
    lambda layer: layer(torch.ones(2, 5), adapter_names=["__base__"] * 2),
    lambda layer: layer(torch.ones(5)),
    lambda layer: layer(torch.ones(2, 3, 5)).mul_(2),
    lambda layer: layer(layer(torch.ones(0, 5))[:, [0, 1, 2, 3, 0]]),
]  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_an_adapted_layer_is_pefts_however_it_is_called(call: Callable[[lora.Linear], Tensor]) -> None:
    plain = Adapted()
    lean = copy.deepcopy(plain)
    keep_less(lean)
    values = [call(adapted.layer) for adapted in (plain, lean)]  # type: ignore[arg-type]
    assert torch.equal(values[1], values[0])
    for value in values:
        if value.requires_grad:
            value.float().square().sum().backward()
    for theirs, ours in zip(plain.parameters(), lean.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        assert theirs.grad is None or torch.allclose(ours.grad, theirs.grad, rtol=1e-5)  # type: ignore[arg-type]


def test_a_second_derivative_is_refused_and_not_wrong() -> None:
    adapted = Adapted()
    keep_less(adapted)
    x = torch.ones(2, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad(adapted.layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("options", [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}])
def test_another_kind_of_lora_stays_as_it_is(options: dict[str, object]) -> None:
    adapted = Adapted(**options)
    keep_less(adapted)
    assert type(adapted.layer) is lora.Linear


def test_what_is_trained_stays_as_it_is() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1, padding=1, padding_mode="reflect"))
    layers[1].requires_grad_(False)
    keep_less(layers)
    assert [type(layer) for layer in layers] == [nn.Conv2d, nn.Conv2d]
