"""Loss and gradient of the rivals in their published form, on the U-Net and the trajectories of `make_golden.py`.

Nothing of `learner` is used but the draws: the terms are those of DDPO's `ddim_step_with_logprob` and training loop, of
Flow-GRPO's group statistics and divergence, and of Diffusion-DPO's training script, one U-Net call a trajectory and
step. `rivals.safetensors` holds what they give; it is written by

    python tests/golden/make_rivals.py
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from make_golden import FILE as TRAJECTORIES
from make_golden import PLAN, PROMPTS, SCHEDULER, STEPS, bind, draws, make_group, make_policy
from safetensors.numpy import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

FILE = Path(__file__).with_name("rivals.safetensors")
CLIP, KL, BETA, GUIDANCE = 0.03, 0.2, 50.0, 3.0
PAIRS = replace(
    PLAN,
    trajectories=torch.tensor([[0, 2], [2, 1]]),
    steps=torch.tensor([[981, 40], [500, 120]]),
    tie_noise=torch.tensor([[0.1, 0.2], [0.6, 0.5]]),
    noise=torch.from_numpy(draws("dpo noise", (2, 2, 4, 8, 8))),
)
ALPHAS = DDPMScheduler.from_config(SCHEDULER).alphas_cumprod


def ddim_step(policy: Any, x: Tensor, t: int, states: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, with η = 1 and classifier-free guidance."""
    timestep = torch.tensor(1000 // STEPS * (STEPS - 1 - t) + 1)
    empty = policy.encode("")["prompt_embeds"][None]
    uncond, text = (policy.network(x, timestep[None], given).sample for given in (empty, states))
    eps = uncond + GUIDANCE * (text - uncond)
    before = timestep - 1000 // STEPS
    alpha_t, alpha_prev = ALPHAS[timestep], ALPHAS[before] if before >= 0 else ALPHAS[0]
    pred_original = (x - (1 - alpha_t).sqrt() * eps) / alpha_t.sqrt()
    variance = (1 - alpha_prev) / (1 - alpha_t) * (1 - alpha_t / alpha_prev)
    return alpha_prev.sqrt() * pred_original + (1 - alpha_prev - variance).sqrt() * eps, variance.sqrt()


def policy_gradient(policy: Any, inputs: Mapping[str, np.ndarray]) -> Tensor:
    losses = []
    for b in range(len(PROMPTS)):
        group = make_group(policy, b, inputs)
        states, rewards = torch.from_numpy(group.conditioning["prompt_embeds"])[None], group.rewards.astype(np.float64)
        advantages = (rewards - np.mean(rewards)) / (np.std(rewards) + 1e-4)
        for k in PLAN.trajectories[b].tolist():
            for t in PLAN.steps[b].tolist():
                x, following = (torch.from_numpy(group.latents[k, i].astype(np.float32))[None] for i in (t, t + 1))
                with torch.no_grad(), policy.reference():
                    initial, _ = ddim_step(policy, x, t, states)
                mean, std = ddim_step(policy, x, t, states)
                log_prob = -((following - mean) ** 2) / (2 * std**2) - std.log() - math.log(math.sqrt(2 * math.pi))
                ratio = torch.exp(log_prob.mean() - float(group.log_probs[k, t]))
                advantage = float(np.clip(advantages[k], -5, 5))
                unclipped = -advantage * ratio
                clipped = -advantage * torch.clamp(ratio, 1.0 - CLIP, 1.0 + CLIP)
                kl_loss = ((mean - initial) ** 2).mean() / (2 * std**2)
                losses.append(torch.maximum(unclipped, clipped) + KL * kl_loss)
    return torch.stack(losses).view(len(PROMPTS), -1).mean(1)


def diffusion_dpo(policy: Any, inputs: Mapping[str, np.ndarray]) -> Tensor:
    assert PAIRS.noise is not None
    scheduler, losses = DDPMScheduler.from_config(SCHEDULER), []
    for b in range(len(PROMPTS)):
        group = make_group(policy, b, inputs)
        states = torch.from_numpy(group.conditioning["prompt_embeds"])[None]
        w, lose = sorted(PAIRS.trajectories[b].tolist(), key=lambda k: group.rewards[k], reverse=True)
        for s in range(2):
            noise, timestep = PAIRS.noise[b, s][None], PAIRS.steps[b, s][None]
            clean = (torch.from_numpy(group.latents[k, -1].astype(np.float32))[None] for k in (w, lose))
            noisy = [scheduler.add_noise(x, noise, timestep) for x in clean]
            model_w, model_l = ((policy.network(x, timestep, states).sample - noise).pow(2).mean() for x in noisy)
            with torch.no_grad(), policy.reference():
                ref_w, ref_l = ((policy.network(x, timestep, states).sample - noise).pow(2).mean() for x in noisy)
            inside_term = -0.5 * BETA * ((model_w - model_l) - (ref_w - ref_l))
            losses.append(-F.logsigmoid(inside_term))
    return torch.stack(losses).view(len(PROMPTS), -1).mean(1)


PUBLISHED: dict[str, Callable[[Any, Mapping[str, np.ndarray]], Tensor]] = {
    "policy_gradient": policy_gradient,
    "diffusion_dpo": diffusion_dpo,
}


def loss_and_gradient(policy: Any, loss: Tensor) -> dict[str, np.ndarray]:
    """Of each tuple, and of their mean by every LoRA tensor."""
    loss.mean().backward()
    named = policy.network.named_parameters()
    gradients = {f"gradient/{name}": p.grad.numpy().copy() for name, p in named if p.grad is not None}
    return {"loss": loss.detach().numpy(), **gradients}


if __name__ == "__main__":
    result: dict[str, np.ndarray] = {}
    for rival, compute in PUBLISHED.items():
        policy = make_policy()
        bind(policy, "new")
        found = loss_and_gradient(policy, compute(policy, load_file(TRAJECTORIES)))
        result |= {f"{rival}/{name}": value for name, value in found.items()}
    save_file(result, FILE)
    FILE.chmod(0o644)
    print(f"wrote {FILE}")
