"""The transition kernel against METHOD §3 in float64 NumPy, and against diffusers' own step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from scipy.stats import norm

from raydense.diffusion.kernel import gaussian_log_prob, make_schedule, transition
from raydense.diffusion.schedulers import PREDICTION_TYPES

SD15: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}


class Reference:
    """METHOD §3 from the betas up, one step at a time, in float64."""

    def __init__(self, num_steps: int, eta: float) -> None:
        betas = np.linspace(np.sqrt(0.00085), np.sqrt(0.012), 1000) ** 2
        alpha_bar = np.cumprod(1 - betas)
        stride = 1000 // num_steps
        self.timesteps = [stride * (num_steps - 1 - i) + 1 for i in range(num_steps)]
        self.alpha = [alpha_bar[s] for s in self.timesteps]
        self.alpha_prev = [alpha_bar[s - stride] if s >= stride else alpha_bar[0] for s in self.timesteps]
        self.sigma = [
            eta * np.sqrt((1 - prev) / (1 - now) * (1 - now / prev))
            for now, prev in zip(self.alpha, self.alpha_prev, strict=True)
        ]

    def mean(self, x: np.ndarray, epsilon: np.ndarray, t: int) -> np.ndarray:
        x0 = (x - np.sqrt(1 - self.alpha[t]) * epsilon) / np.sqrt(self.alpha[t])
        return np.sqrt(self.alpha_prev[t]) * x0 + np.sqrt(1 - self.alpha_prev[t] - self.sigma[t] ** 2) * epsilon

    def output(self, prediction_type: str, x: np.ndarray, epsilon: np.ndarray, t: int) -> np.ndarray:
        """What a network of this prediction type says when it means `epsilon`."""
        root_alpha, root_beta = np.sqrt(self.alpha[t]), np.sqrt(1 - self.alpha[t])
        x0 = (x - root_beta * epsilon) / root_alpha
        return {"epsilon": epsilon, "v_prediction": root_alpha * epsilon - root_beta * x0, "sample": x0}[
            prediction_type
        ]


def test_fifty_steps_visit_981_961_to_1() -> None:
    assert make_schedule(SD15, 50, 1.0).timesteps.tolist() == list(range(981, 0, -20))


@pytest.mark.parametrize("num_steps", [1, 7, 10, 50, 999])
def test_constants_follow_the_beta_schedule(num_steps: int) -> None:
    schedule, reference = make_schedule(SD15, num_steps, 1.0), Reference(num_steps, 1.0)
    assert schedule.num_steps == num_steps
    assert schedule.timesteps.tolist() == reference.timesteps
    np.testing.assert_allclose(schedule.signal.numpy() ** 2, reference.alpha, rtol=1e-5)
    np.testing.assert_allclose(schedule.noise.numpy() ** 2, 1 - np.array(reference.alpha), rtol=1e-3)
    np.testing.assert_allclose(schedule.next_signal.numpy() ** 2, reference.alpha_prev, rtol=1e-5)
    assert schedule.noisy == (True,) * num_steps
    # diffusers holds ᾱ in float32, so 1 − ᾱ_t/ᾱ_prev of one fine step keeps four digits
    np.testing.assert_allclose(schedule.sigma.numpy(), reference.sigma, rtol=3e-4)


@pytest.mark.parametrize("eta", [1.0, 0.5])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("num_steps", [10, 50])
def test_every_step_matches_the_slow_reference(num_steps: int, prediction_type: str, eta: float) -> None:
    reference = Reference(num_steps, eta)
    draws = np.random.default_rng(0)
    x, epsilon = draws.standard_normal((2, num_steps, 4, 3, 3))
    output = np.stack([reference.output(prediction_type, x[t], epsilon[t], t) for t in range(num_steps)])
    expected = np.stack([reference.mean(x[t], epsilon[t], t) for t in range(num_steps)])

    schedule = make_schedule({**SD15, "prediction_type": prediction_type}, num_steps, eta)
    mean, sigma, x0 = transition(schedule, torch.tensor(x), torch.tensor(output), torch.arange(num_steps))

    np.testing.assert_allclose(mean.numpy(), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(sigma[:, 0, 0, 0].numpy(), reference.sigma, rtol=3e-4)
    alpha = np.array(reference.alpha)[:, None, None, None]
    np.testing.assert_allclose(x0.numpy(), (x - np.sqrt(1 - alpha) * epsilon) / np.sqrt(alpha), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("eta", [1.0, 0.5])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("num_steps", [7, 10, 50])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_the_mean_is_the_one_diffusers_samples_around(
    spacing: str, num_steps: int, prediction_type: str, eta: float
) -> None:
    scheduler: Any = DDIMScheduler(**{**SD15, "prediction_type": prediction_type, "timestep_spacing": spacing})
    scheduler.set_timesteps(num_steps)
    schedule = make_schedule(scheduler.config, num_steps, eta)
    assert schedule.timesteps.tolist() == scheduler.timesteps.tolist()
    x, output, noise = torch.randn((3, num_steps, 4, 3, 3), generator=torch.Generator().manual_seed(0))
    mean, sigma, _ = transition(schedule, x, output, torch.arange(num_steps))
    for t, timestep in enumerate(scheduler.timesteps):
        for variance_noise, ours in ((torch.zeros(1), mean[t]), (noise[t], mean[t] + sigma[t] * noise[t])):
            step = scheduler.step(output[t], timestep, x[t], eta=eta, variance_noise=variance_noise)
            torch.testing.assert_close(ours, step.prev_sample, rtol=2e-5, atol=2e-5)


def test_each_row_uses_its_own_step() -> None:
    schedule = make_schedule(SD15, 10, 1.0)
    x, output = torch.randn((2, 3, 4, 2, 2), generator=torch.Generator().manual_seed(0))
    together = transition(schedule, x, output, torch.tensor([9, 0, 4]))
    for row, t in enumerate((9, 0, 4)):
        alone = transition(schedule, x[row : row + 1], output[row : row + 1], torch.tensor([t]))
        for a, b in zip(together, alone, strict=True):
            assert torch.equal(a[row], b[0])


def test_half_precision_input_is_computed_in_float32() -> None:
    schedule = make_schedule(SD15, 10, 1.0)
    x, output = torch.randn((2, 3, 4, 2, 2), generator=torch.Generator().manual_seed(0)).bfloat16()
    t = torch.tensor([0, 5, 9])
    for half, full in zip(
        transition(schedule, x, output, t), transition(schedule, x.float(), output.float(), t), strict=True
    ):
        assert half.dtype == torch.float32
        assert torch.equal(half, full)


def test_log_prob_is_the_mean_log_density() -> None:
    draws = np.random.default_rng(0)
    x, mean = draws.standard_normal((2, 5, 4, 3, 3))
    sigma = np.array([1e-2, 0.1, 0.5, 1.0, 3.0])[:, None, None, None]
    expected = norm.logpdf(x, loc=mean, scale=sigma).mean(axis=(1, 2, 3))
    actual = gaussian_log_prob(torch.tensor(x), torch.tensor(mean).float(), torch.tensor(sigma).float())
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-5)
