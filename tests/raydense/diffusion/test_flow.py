"""Flow matching's chains, against slow references and diffusers' own scheduler."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from raydense.diffusion.flow import DYNAMICS, Levels, flow_chain
from raydense.diffusion.kernel import Schedule, gaussian_log_prob, make_schedule, transition

SD3: dict[str, Any] = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
FLUX: dict[str, Any] = {**SD3, "use_dynamic_shifting": True}
LEVELS = Levels(tokens=1024)


def reference(dynamics: str, eta: float, now: float, following: float, x: np.ndarray, v: np.ndarray) -> Any:
    """Mean and standard deviation of one step, in float64, as published."""
    clean, noise, delta = x - now * v, x + (1 - now) * v, now - following
    if dynamics == "ode":
        return x - delta * v, 0.0
    if dynamics == "cps":
        std = following * math.sin(eta * math.pi / 2)
        return (1 - following) * clean + math.sqrt(following**2 - std**2) * noise, std
    k = eta
    if dynamics == "flow-sde":
        k = eta * math.sqrt(now / (1 - (following if now == 1 else now)))
    return x - delta * (v + k**2 * noise / (2 * now)), k * math.sqrt(delta)


def chain(dynamics: str, eta: float, steps: int = 10, **options: Any) -> Schedule:
    return make_schedule(SD3, steps, eta, dynamics=dynamics, levels=LEVELS, **options)


@pytest.mark.parametrize("eta", [0.3, 0.8, 1.0])
@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_every_step_is_the_published_one(dynamics: str, eta: float) -> None:
    schedule, draws = chain(dynamics, eta), np.random.default_rng(0)
    sigmas = [*flow_chain(SD3, 10, LEVELS).now.tolist(), 0.0]
    x, v = draws.standard_normal((2, 10, 16, 4, 4)).astype(np.float32)
    t = torch.arange(10)
    mean, std, clean = transition(schedule, torch.from_numpy(x), torch.from_numpy(v), t)
    for step in range(10):
        expected, deviation = reference(dynamics, eta, *sigmas[step : step + 2], x[step], v[step])
        np.testing.assert_allclose(mean[step].numpy(), expected, atol=1e-5)
        assert float(std[step]) == pytest.approx(deviation, rel=1e-5, abs=1e-9)
        assert schedule.noisy[step] == (deviation > 0)
        np.testing.assert_allclose(clean[step].numpy(), x[step] - sigmas[step] * v[step], atol=1e-5)


def test_log_probabilities_are_the_true_gaussians() -> None:
    schedule, draws = chain("cps", 0.8), np.random.default_rng(0)
    x, v, following = draws.standard_normal((3, 8, 16, 4, 4)).astype(np.float32)
    t = torch.arange(8)
    mean, std, _ = transition(schedule, torch.from_numpy(x), torch.from_numpy(v), t)
    found = gaussian_log_prob(torch.from_numpy(following), mean, std)
    for step in range(8):
        s, m = float(std[step]), mean[step].double().numpy()
        log_density = -0.5 * ((following[step] - m) / s) ** 2 - math.log(s * math.sqrt(2 * math.pi))
        assert float(found[step]) == pytest.approx(log_density.mean(), rel=1e-4)


def test_cps_ends_without_noise_and_the_sdes_do_not() -> None:
    assert chain("cps", 0.8).noisy == (True,) * 9 + (False,)
    assert chain("flow-sde", 0.7).noisy == chain("dance-sde", 0.3).noisy == (True,) * 10
    assert chain("ode", 1.0).noisy == (False,) * 10
    assert all(torch.isfinite(chain(name, 0.7).sigma).all() for name in DYNAMICS)  # at σ = 1, too


@pytest.mark.parametrize("dynamics", ["cps", "flow-sde", "dance-sde"])
def test_outside_the_window_a_step_is_eulers(dynamics: str) -> None:
    schedule, ode, noisy = chain(dynamics, 0.7, window=(2, 5)), chain("ode", 1.0), chain(dynamics, 0.7)
    assert schedule.noisy == tuple(2 <= step < 5 for step in range(10))
    for step in range(10):
        same_as = noisy if 2 <= step < 5 else ode
        for name in ("next_signal", "next_noise", "sigma"):
            torch.testing.assert_close(
                getattr(schedule, name)[step], getattr(same_as, name)[step], rtol=1e-6, atol=1e-7
            )


def test_ddim_has_a_window_too() -> None:
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
             "set_alpha_to_one": False}  # fmt: skip
    schedule, without, whole = (
        make_schedule(betas, 6, eta, window=window) for eta, window in ((1.0, (1, 3)), (0.0, None), (1.0, None))
    )
    assert schedule.noisy == (False, True, True, False, False, False)
    for step, on in enumerate(schedule.noisy):
        assert schedule.next_noise[step] == (whole if on else without).next_noise[step]


@pytest.mark.parametrize("config", [SD3, FLUX, {**SD3, "shift": 1.0}], ids=["sd3", "flux", "unshifted"])
@pytest.mark.parametrize("even", [True, False])
def test_the_levels_are_the_schedulers(config: dict[str, Any], even: bool) -> None:
    scheduler: Any = FlowMatchEulerDiscreteScheduler.from_config(config)
    asked: dict[str, Any] = {"sigmas": np.linspace(1, 1 / 7, 7)} if even else {"num_inference_steps": 7}
    if "use_dynamic_shifting" in config:
        asked["mu"] = 0.5 + (1.15 - 0.5) / (4096 - 256) * (1024 - 256)
    scheduler.set_timesteps(**asked)
    found = flow_chain(config, 7, Levels(1024, even))
    assert found.timesteps.tolist() == scheduler.timesteps.tolist()
    np.testing.assert_allclose(found.now.numpy(), scheduler.sigmas[:-1].double().numpy(), rtol=1e-6)
    assert found.next.tolist() == [*found.now[1:].tolist(), 0.0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"invert_sigmas": True}, "invert_sigmas=true cannot be taken over"),
        ({"stochastic_sampling": True}, "stochastic_sampling=true cannot be taken over"),
        ({"_class_name": "DDIMScheduler"}, "DDIMScheduler has no noise levels of a flow"),
    ],
)
def test_what_cannot_be_a_chain_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        flow_chain({**SD3, **change}, 4, LEVELS)


@pytest.mark.parametrize("dynamics", ["ddim", "cps", "flow-sde", "dance-sde"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_sensitivity_is_that_of_the_mean(dynamics: str, prediction_type: str) -> None:
    if dynamics == "ddim":
        config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
                  "set_alpha_to_one": False, "prediction_type": prediction_type}  # fmt: skip
        schedule = make_schedule(config, 10, 1.0)
    else:
        schedule = chain(dynamics, 0.8)
    x, output, t = torch.randn(10, 1, 2, 2), torch.randn(10, 1, 2, 2), torch.arange(10)
    moved, _, _ = transition(schedule, x, output + 1, t)
    mean, std, _ = transition(schedule, x, output, t)
    expected = ((moved - mean).mean((1, 2, 3)) / std[:, 0, 0, 0]).abs()
    finite = torch.isfinite(expected)
    torch.testing.assert_close(schedule.sensitivity()[finite], expected[finite], rtol=2e-3, atol=1e-4)
    assert finite.tolist() == list(schedule.noisy)


def test_the_second_to_last_step_of_sd3_moves_most() -> None:
    found = chain("cps", 0.8).sensitivity()
    assert float(found[8]) == pytest.approx(32, rel=0.05)
    assert float(found[:8].max()) < 1.2
